{
  "dsseEnvelope": {
    "payload": "ewogICJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAicHJlZGljYXRlIjogewogICAgInJlc291cmNlcyI6IFsKICAgICAgewogICAgICAgICJhbGdvcml0aG0iOiAic2hhMjU2IiwKICAgICAgICAiZGlnZXN0IjogIjEwMmM5NzIxYmM2MDI4OGMyNDNhMWViNTUyNmExYjUzMzllNGQ1MTFmYWQ0ZjkzNzdhNTUxNGEzODFiYzYzN2IiLAogICAgICAgICJuYW1lIjogImFkYXB0ZXJfY29uZmlnLmpzb24iCiAgICAgIH0sCiAgICAgIHsKICAgICAgICAiYWxnb3JpdGhtIjogInNoYTI1NiIsCiAgICAgICAgImRpZ2VzdCI6ICI3YzczMGM1MzIxNjY0NzAzMWUyM2I5YjM2ZTA4MjQ3NmI5MTI2NTk1N2QxMTgzMWMyMzRjODU2ZDkwNmU3ZTI5IiwKICAgICAgICAibmFtZSI6ICJhZGFwdGVyX21vZGVsLnNhZmV0ZW5zb3JzIgogICAgICB9CiAgICBdLAogICAgInNlcmlhbGl6YXRpb24iOiB7CiAgICAgICJhbGxvd19zeW1saW5rcyI6IGZhbHNlLAogICAgICAiaGFzaF90eXBlIjogInNoYTI1NiIsCiAgICAgICJpZ25vcmVfcGF0aHMiOiBbCiAgICAgICAgIi5naXQiLAogICAgICAgICIuZ2l0YXR0cmlidXRlcyIsCiAgICAgICAgIi5naXRodWIiLAogICAgICAgICIuZ2l0aWdub3JlIiwKICAgICAgICAibW9kZWwuc2lnIgogICAgICBdLAogICAgICAibWV0aG9kIjogImZpbGVzIgogICAgfQogIH0sCiAgInByZWRpY2F0ZVR5cGUiOiAiaHR0cHM6Ly9tb2RlbF9zaWduaW5nL3NpZ25hdHVyZS92MS4wIiwKICAic3ViamVjdCI6IFsKICAgIHsKICAgICAgImRpZ2VzdCI6IHsKICAgICAgICAic2hhMjU2IjogIjliM2U0ZjA2OWIxODdjOTA3MGQyMDk3YzI0YzZmMjcwZTg4OTEzZjE4NGVjMmZhYWZhZjIyMWVhM2U5MmZhZmEiCiAgICAgIH0sCiAgICAgICJuYW1lIjogIm9yZy90YXNrQDEuMC4wIgogICAgfQogIF0KfQo=",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEUCIB0I+dfFf/lhTcw/3cXffLKEv23ebheBPrMTkoKFUDXlAiEAgtQ+KQEinX/cpMhkyozabk8nfmIMIJW8CwPacluugfc="
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
