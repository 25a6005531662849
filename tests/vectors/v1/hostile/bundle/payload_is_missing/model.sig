{
  "dsseEnvelope": {
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
