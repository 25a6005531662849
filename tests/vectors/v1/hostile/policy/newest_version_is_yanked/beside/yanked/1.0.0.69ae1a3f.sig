{
  "dsseEnvelope": {
    "payload": "ewogICJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAicHJlZGljYXRlIjogewogICAgImNyZWF0ZWQiOiAiMjAyNi0wMS0zMVQxMjowMDowMFoiLAogICAgInJlYXNvbiI6ICJpdCBmb3JnZXRzIFx1MDAxYlsySuKAriIKICB9LAogICJwcmVkaWNhdGVUeXBlIjogInVybjpsb3JhLWh1Yjp5YW5rOnYxIiwKICAic3ViamVjdCI6IFsKICAgIHsKICAgICAgImRpZ2VzdCI6IHsKICAgICAgICAic2hhMjU2IjogIjA5Yzc0YWQ5MGJjZTc2Mzk3ODU0ZWQwMDA2YjZjZmQyZjYxMTNjOGEyZDg1NDUzMDM2ZTYyNjEwNGJjNmQwNzUiCiAgICAgIH0sCiAgICAgICJuYW1lIjogIm9yZy90YXNrQDEuMC4wIgogICAgfQogIF0KfQo=",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEUCIQCXj0rT5dddXIlVekjbQFQD44kYgNBudUkNVnC4rEdGvgIgUP9FQ7KQxNC2B/98ZEa4/fgyFKSCHxDdifjFLY6WBJA="
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
