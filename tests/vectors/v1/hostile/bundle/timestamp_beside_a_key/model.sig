{
  "dsseEnvelope": {
    "payload": "ewogICJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAicHJlZGljYXRlIjogewogICAgInJlc291cmNlcyI6IFsKICAgICAgewogICAgICAgICJhbGdvcml0aG0iOiAic2hhMjU2IiwKICAgICAgICAiZGlnZXN0IjogIjEwMmM5NzIxYmM2MDI4OGMyNDNhMWViNTUyNmExYjUzMzllNGQ1MTFmYWQ0ZjkzNzdhNTUxNGEzODFiYzYzN2IiLAogICAgICAgICJuYW1lIjogImFkYXB0ZXJfY29uZmlnLmpzb24iCiAgICAgIH0sCiAgICAgIHsKICAgICAgICAiYWxnb3JpdGhtIjogInNoYTI1NiIsCiAgICAgICAgImRpZ2VzdCI6ICI3YzczMGM1MzIxNjY0NzAzMWUyM2I5YjM2ZTA4MjQ3NmI5MTI2NTk1N2QxMTgzMWMyMzRjODU2ZDkwNmU3ZTI5IiwKICAgICAgICAibmFtZSI6ICJhZGFwdGVyX21vZGVsLnNhZmV0ZW5zb3JzIgogICAgICB9LAogICAgICB7CiAgICAgICAgImFsZ29yaXRobSI6ICJzaGEyNTYiLAogICAgICAgICJkaWdlc3QiOiAiMDljNzRhZDkwYmNlNzYzOTc4NTRlZDAwMDZiNmNmZDJmNjExM2M4YTJkODU0NTMwMzZlNjI2MTA0YmM2ZDA3NSIsCiAgICAgICAgIm5hbWUiOiAibG9yYS1odWIuanNvbiIKICAgICAgfQogICAgXSwKICAgICJzZXJpYWxpemF0aW9uIjogewogICAgICAiYWxsb3dfc3ltbGlua3MiOiBmYWxzZSwKICAgICAgImhhc2hfdHlwZSI6ICJzaGEyNTYiLAogICAgICAiaWdub3JlX3BhdGhzIjogWwogICAgICAgICIuZ2l0IiwKICAgICAgICAiLmdpdGF0dHJpYnV0ZXMiLAogICAgICAgICIuZ2l0aHViIiwKICAgICAgICAiLmdpdGlnbm9yZSIsCiAgICAgICAgIm1vZGVsLnNpZyIKICAgICAgXSwKICAgICAgIm1ldGhvZCI6ICJmaWxlcyIKICAgIH0KICB9LAogICJwcmVkaWNhdGVUeXBlIjogImh0dHBzOi8vbW9kZWxfc2lnbmluZy9zaWduYXR1cmUvdjEuMCIsCiAgInN1YmplY3QiOiBbCiAgICB7CiAgICAgICJkaWdlc3QiOiB7CiAgICAgICAgInNoYTI1NiI6ICI5YjNlNGYwNjliMTg3YzkwNzBkMjA5N2MyNGM2ZjI3MGU4ODkxM2YxODRlYzJmYWFmYWYyMjFlYTNlOTJmYWZhIgogICAgICB9LAogICAgICAibmFtZSI6ICJvcmcvdGFza0AxLjAuMCIKICAgIH0KICBdCn0K",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEYCIQDSq9Gk2cLKaJBm3FjPH0htL60t5ScFo659vy+ANqocogIhAP2Q9gBIl0bMQ/trokjJgpAgEHFr3NlYZqdTPOhZFrwm"
      }
    ]
  },
  "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
  "verificationMaterial": {
    "publicKey": {
      "hint": "69ae1a3f43167694020c4982097181a565abf85b441427795ad503d4f0dffc1f"
    },
    "timestampVerificationData": {
      "rfc3161": [
        1
      ]
    },
    "tlogEntries": []
  }
}
