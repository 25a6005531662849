{
  "dsseEnvelope": {
    "payload": "c3RhdGVtZW50",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [
      {
        "keyid": "",
        "sig": "MEUCIBqbgr5ywQ6xFm4x0HNEht3teWGtU6PjAdGqiP8eHRJHAiEAxrYrTZC96ybKS3PFEWRCkq7PamNsd51WsxjhXklCPFY="
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
