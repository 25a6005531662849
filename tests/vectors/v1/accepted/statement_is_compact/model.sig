{
  "dsseEnvelope": {
    "payload": "eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEiLCJzdWJqZWN0IjpbeyJuYW1lIjoib3JnL3Rhc2tAMS4wLjAiLCJkaWdlc3QiOnsic2hhMjU2IjoiOWIzZTRmMDY5YjE4N2M5MDcwZDIwOTdjMjRjNmYyNzBlODg5MTNmMTg0ZWMyZmFhZmFmMjIxZWEzZTkyZmFmYSJ9fV0sInByZWRpY2F0ZVR5cGUiOiJodHRwczovL21vZGVsX3NpZ25pbmcvc2lnbmF0dXJlL3YxLjAiLCJwcmVkaWNhdGUiOnsicmVzb3VyY2VzIjpbeyJuYW1lIjoiYWRhcHRlcl9jb25maWcuanNvbiIsImFsZ29yaXRobSI6InNoYTI1NiIsImRpZ2VzdCI6IjEwMmM5NzIxYmM2MDI4OGMyNDNhMWViNTUyNmExYjUzMzllNGQ1MTFmYWQ0ZjkzNzdhNTUxNGEzODFiYzYzN2IifSx7Im5hbWUiOiJhZGFwdGVyX21vZGVsLnNhZmV0ZW5zb3JzIiwiYWxnb3JpdGhtIjoic2hhMjU2IiwiZGlnZXN0IjoiN2M3MzBjNTMyMTY2NDcwMzFlMjNiOWIzNmUwODI0NzZiOTEyNjU5NTdkMTE4MzFjMjM0Yzg1NmQ5MDZlN2UyOSJ9LHsibmFtZSI6ImxvcmEtaHViLmpzb24iLCJhbGdvcml0aG0iOiJzaGEyNTYiLCJkaWdlc3QiOiIwOWM3NGFkOTBiY2U3NjM5Nzg1NGVkMDAwNmI2Y2ZkMmY2MTEzYzhhMmQ4NTQ1MzAzNmU2MjYxMDRiYzZkMDc1In1dLCJzZXJpYWxpemF0aW9uIjp7Im1ldGhvZCI6ImZpbGVzIiwiaGFzaF90eXBlIjoic2hhMjU2IiwiYWxsb3dfc3ltbGlua3MiOmZhbHNlLCJpZ25vcmVfcGF0aHMiOlsiLmdpdCIsIi5naXRhdHRyaWJ1dGVzIiwiLmdpdGh1YiIsIi5naXRpZ25vcmUiLCJtb2RlbC5zaWciXX19fQ==",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEYCIQCaQCdYwXG4tOn4lLRADn0MiJb3kNkqW2qH8q0/I8p2vwIhAN2mlnK6CIStsYYRy7q5dHYBuyW/OukNIdwnK8qHkTcf"
      }
    ]
  },
  "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
  "verificationMaterial": {
    "publicKey": {
      "hint": "69ae1a3f43167694020c4982097181a565abf85b441427795ad503d4f0dffc1f"
    },
    "tlogEntries": []
  }
}
