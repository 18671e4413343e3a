// One side of Noise XX by noise-c.wasm: a JSON object a line on stdin, the answer to each on stdout; bytes in hex.
//
//   {"do": "start", "role": "INITIATOR" or "RESPONDER", "prologue", "static"}   {}
//   {"do": "write", "payload"}                                                  {"bytes": the message}
//   {"do": "read", "message"}                                                   {"bytes": the payload}
//   {"do": "split"}                                                             {"hash", "remote"}
//   {"do": "encrypt", "plaintext"}, {"do": "decrypt", "message"}                {"bytes"}
//
// What the library throws is the answer {"error": its name for it}.
"use strict";

const bytes = (hex) => new Uint8Array(Buffer.from(hex, "hex"));
const hex = (array) => Buffer.from(array).toString("hex");
const NOTHING = new Uint8Array(0);

// Handed over, as the library would fetch it from a path, which Node's fetch refuses.
const wasmBinary = require("fs").readFileSync(require.resolve("noise-c.wasm/src/noise-c.wasm"));

require("noise-c.wasm")({ wasmBinary }, (noise) => {
  let handshake, sending, receiving;
  const commands = {
    start({ role, prologue, static: key }) {
      handshake = noise.HandshakeState("Noise_XX_25519_AESGCM_SHA256", noise.constants[`NOISE_ROLE_${role}`]);
      handshake.Initialize(bytes(prologue), bytes(key));
      return {};
    },
    write: ({ payload }) => ({ bytes: hex(handshake.WriteMessage(bytes(payload))) }),
    read: ({ message }) => ({ bytes: hex(handshake.ReadMessage(bytes(message), true)) }),
    split() {
      const answer = { hash: hex(handshake.GetHandshakeHash()), remote: hex(handshake.GetRemotePublicKey()) };
      [sending, receiving] = handshake.Split();
      return answer;
    },
    encrypt: ({ plaintext }) => ({ bytes: hex(sending.EncryptWithAd(NOTHING, bytes(plaintext))) }),
    decrypt: ({ message }) => ({ bytes: hex(receiving.DecryptWithAd(NOTHING, bytes(message))) }),
  };
  require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
    const command = JSON.parse(line);
    let answer;
    try {
      answer = commands[command.do](command);
    } catch (error) {
      answer = { error: error.message };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  });
});
