{
  "dsseEnvelope": {
    "payload": "ewogICJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAicHJlZGljYXRlIjogewogICAgImNyZWF0ZWQiOiAiMjAyNi0wMS0zMVQxMjowMDowMFoiLAogICAgInJlYXNvbiI6ICJpdCBmb3JnZXRzIFx1MDAxYlsySuKAriIKICB9LAogICJwcmVkaWNhdGVUeXBlIjogInVybjpsb3JhLWh1Yjp5YW5rOnYxIiwKICAic3ViamVjdCI6IFsKICAgIHsKICAgICAgImRpZ2VzdCI6IHsKICAgICAgICAic2hhMjU2IjogIjA5Yzc0YWQ5MGJjZTc2Mzk3ODU0ZWQwMDA2YjZjZmQyZjYxMTNjOGEyZDg1NDUzMDM2ZTYyNjEwNGJjNmQwNzUiCiAgICAgIH0sCiAgICAgICJuYW1lIjogIm9yZy90YXNrQDEuMC4wIgogICAgfQogIF0KfQo=",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEUCIA/5NoYunjKU7P13EwK6gHH/Q5L0q7T6yMGoeXuA+/3oAiEA3iUX6LqepxCsa/Oj8Cu5WDcO/OQFFyvQdmCOdRJq4r8="
      }
    ]
  },
  "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
  "verificationMaterial": {
    "publicKey": {
      "hint": "6abd7e8e0351b4d0a4a15cbe41d925f4139c559f7d69f643a4044b92bf0fc4d2"
    },
    "tlogEntries": []
  }
}
