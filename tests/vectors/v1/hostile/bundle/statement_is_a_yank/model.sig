{
  "dsseEnvelope": {
    "payload": "ewogICJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAicHJlZGljYXRlIjogewogICAgImNyZWF0ZWQiOiAiMjAyNi0wMS0zMVQxMjowMDowMFoiLAogICAgInJlYXNvbiI6ICJpdCBpcyBicm9rZW4iCiAgfSwKICAicHJlZGljYXRlVHlwZSI6ICJ1cm46bG9yYS1odWI6eWFuazp2MSIsCiAgInN1YmplY3QiOiBbCiAgICB7CiAgICAgICJkaWdlc3QiOiB7CiAgICAgICAgInNoYTI1NiI6ICIwOWM3NGFkOTBiY2U3NjM5Nzg1NGVkMDAwNmI2Y2ZkMmY2MTEzYzhhMmQ4NTQ1MzAzNmU2MjYxMDRiYzZkMDc1IgogICAgICB9LAogICAgICAibmFtZSI6ICJvcmcvdGFza0AxLjAuMCIKICAgIH0KICBdCn0K",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEYCIQCxagAGK0neDEt4PTrVcS/62jZgdRYsLy/QV0Stbyhl/AIhANkJYCO/UUa2eGOUQAoc5MLe2J2vg8ZyiJIr6tizLMfc"
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
