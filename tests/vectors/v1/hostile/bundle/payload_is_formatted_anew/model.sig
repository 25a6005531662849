{
  "dsseEnvelope": {
    "payload": "eyJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwgInByZWRpY2F0ZSI6IHsicmVzb3VyY2VzIjogW3siYWxnb3JpdGhtIjogInNoYTI1NiIsICJkaWdlc3QiOiAiMTAyYzk3MjFiYzYwMjg4YzI0M2ExZWI1NTI2YTFiNTMzOWU0ZDUxMWZhZDRmOTM3N2E1NTE0YTM4MWJjNjM3YiIsICJuYW1lIjogImFkYXB0ZXJfY29uZmlnLmpzb24ifSwgeyJhbGdvcml0aG0iOiAic2hhMjU2IiwgImRpZ2VzdCI6ICI3YzczMGM1MzIxNjY0NzAzMWUyM2I5YjM2ZTA4MjQ3NmI5MTI2NTk1N2QxMTgzMWMyMzRjODU2ZDkwNmU3ZTI5IiwgIm5hbWUiOiAiYWRhcHRlcl9tb2RlbC5zYWZldGVuc29ycyJ9LCB7ImFsZ29yaXRobSI6ICJzaGEyNTYiLCAiZGlnZXN0IjogIjA5Yzc0YWQ5MGJjZTc2Mzk3ODU0ZWQwMDA2YjZjZmQyZjYxMTNjOGEyZDg1NDUzMDM2ZTYyNjEwNGJjNmQwNzUiLCAibmFtZSI6ICJsb3JhLWh1Yi5qc29uIn1dLCAic2VyaWFsaXphdGlvbiI6IHsiYWxsb3dfc3ltbGlua3MiOiBmYWxzZSwgImhhc2hfdHlwZSI6ICJzaGEyNTYiLCAiaWdub3JlX3BhdGhzIjogWyIuZ2l0IiwgIi5naXRhdHRyaWJ1dGVzIiwgIi5naXRodWIiLCAiLmdpdGlnbm9yZSIsICJtb2RlbC5zaWciXSwgIm1ldGhvZCI6ICJmaWxlcyJ9fSwgInByZWRpY2F0ZVR5cGUiOiAiaHR0cHM6Ly9tb2RlbF9zaWduaW5nL3NpZ25hdHVyZS92MS4wIiwgInN1YmplY3QiOiBbeyJkaWdlc3QiOiB7InNoYTI1NiI6ICI5YjNlNGYwNjliMTg3YzkwNzBkMjA5N2MyNGM2ZjI3MGU4ODkxM2YxODRlYzJmYWFmYWYyMjFlYTNlOTJmYWZhIn0sICJuYW1lIjogIm9yZy90YXNrQDEuMC4wIn1dfQ==",
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
    "tlogEntries": []
  }
}
