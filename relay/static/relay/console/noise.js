// Noise_XX_25519_AESGCM_SHA256 (Noise Protocol Framework, revision 34) on WebCrypto, without I/O.
//
// `Handshake` runs the three messages of the XX pattern (sections 5.3 and 7.5) and splits into a `Transport`.
// Any failure poisons the object: it forgets its keys, and everything asked of it from then on fails. The
// mirror of relay/client/noise.py.

export const PROTOCOL = "Noise_XX_25519_AESGCM_SHA256";
/** Bytes of the longest Noise message, tag included (section 3). */
export const MAX_MESSAGE = 65535;
export const KEY = 32;
export const TAG = 16;

const XX = [["e"], ["e", "ee", "s", "es"], ["s", "se"]];
const EMPTY = new Uint8Array(0);
const DH = { name: "X25519" };

/** A message was not the peer's, or the state was used against its rules; it is of no more use. */
export class NoiseError extends Error {}

/** A new key pair: `privateKey` stays in the browser's key store, `publicKey` is its 32 bytes. */
export async function generateKeyPair() {
  const pair = await crypto.subtle.generateKey(DH, false, ["deriveBits"]);
  return {
    privateKey: pair.privateKey,
    publicKey: new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey)),
  };
}

/** SHA-256 of all the parts, one after the other. */
export async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", joined(parts)));
}

/** The parts (Uint8Array) in one. */
export function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/**
 * A key and its nonce (section 5.1). Without a key, text passes as it is.
 *
 * The nonce is taken when a method is called, so several calls may be under way at once.
 */
class CipherState {
  #key;
  #nonce = 0;

  constructor(key = null) {
    this.#key = key && aesKey(key);
    this.#key?.catch(() => {}); // it shows where the key is used
  }

  get hasKey() {
    return this.#key !== null;
  }

  async encrypt(ad, plaintext) {
    if (!this.#key) return plaintext;
    const algorithm = { name: "AES-GCM", iv: iv(this.#next()), additionalData: ad };
    return new Uint8Array(await crypto.subtle.encrypt(algorithm, await this.#key, plaintext));
  }

  async decrypt(ad, ciphertext) {
    if (!this.#key) return ciphertext;
    const algorithm = { name: "AES-GCM", iv: iv(this.#next()), additionalData: ad };
    return new Uint8Array(await crypto.subtle.decrypt(algorithm, await this.#key, ciphertext));
  }

  /** A new key out of the old one, the nonce staying (section 4.2); nobody can go back from it. */
  rekey() {
    if (!this.#key) throw new NoiseError("there is no key yet");
    const last = new Uint8Array(12).fill(0xff, 4); // the nonce 2^64-1, which no message has
    this.#key = this.#key.then(async (key) => {
      const algorithm = { name: "AES-GCM", iv: last };
      const sealed = await crypto.subtle.encrypt(algorithm, key, new Uint8Array(KEY));
      return aesKey(new Uint8Array(sealed, 0, KEY));
    });
    this.#key.catch(() => {});
  }

  #next() {
    // Far more than a connection that lives for a day can send, and exact in a number.
    if (this.#nonce >= Number.MAX_SAFE_INTEGER) throw new NoiseError("the nonces are used up");
    return this.#nonce++;
  }
}

/** The two directions after the handshake. */
export class Transport {
  #sending;
  #receiving;
  #received = Promise.resolve();
  #poisoned = false;

  constructor(sending, receiving, handshakeHash, remoteStatic) {
    this.#sending = sending;
    this.#receiving = receiving;
    /** 32 bytes that are equal on both sides if, and only if, nobody is in between (section 11.2). */
    this.handshakeHash = handshakeHash;
    /** The peer's public key: 32 bytes that it has proven to hold the private half of. */
    this.remoteStatic = remoteStatic;
  }

  /** The next message. Several may be asked for at once: they are numbered in the order of the calls. */
  encrypt(plaintext) {
    return this.#poisons(() => {
      if (plaintext.length > MAX_MESSAGE - TAG) {
        throw new NoiseError(`a plaintext of ${plaintext.length} bytes is too long for one message`);
      }
      return this.#sending.encrypt(EMPTY, plaintext);
    });
  }

  /**
   * The plaintext of the peer's next message, which nobody altered, left out, repeated or reordered.
   *
   * Several may be asked for at once: they come in the order of the calls, and none after one that failed.
   */
  decrypt(message) {
    const before = this.#received;
    const decrypting = this.#poisons(() => {
      if (message.length < TAG || message.length > MAX_MESSAGE) {
        throw new NoiseError(`a message can't have ${message.length} bytes`);
      }
      return this.#receiving.decrypt(EMPTY, message);
    });
    decrypting.catch(() => {}); // whoever awaits what is below hears of it, in its turn
    this.#received = before.then(() => decrypting);
    return this.#received;
  }

  /** A new key for what is sent from now on; the peer does `rekeyReceiving` at the same message. */
  rekeySending() {
    this.#sending.rekey();
  }

  /** A new key for what is received from now on. */
  rekeyReceiving() {
    this.#receiving.rekey();
  }

  async #poisons(work) {
    if (this.#poisoned) throw spent();
    try {
      return await work();
    } catch (error) {
      this.#poisoned = true;
      this.#sending = this.#receiving = new CipherState();
      throw told(error);
    }
  }
}

/**
 * One side of XX. The initiator writes messages 1 and 3, the responder message 2; each carries a payload.
 *
 * Key pairs are as `generateKeyPair` makes them. `ephemeral` is for test vectors only: never use one twice.
 * Payload 1 is readable by all, payload 2 by whoever the initiator is, payload 3 by who sent message 2.
 */
export class Handshake {
  #initiator;
  #static;
  #ephemeral;
  #remote = { e: null, s: null };
  #cipher = new CipherState();
  #chainingKey;
  #hash;
  #messages = 0;
  #poisoned = false;
  #busy = false;

  static async begin({ initiator, prologue, staticKey, ephemeral }) {
    const handshake = new Handshake();
    handshake.#initiator = initiator;
    handshake.#static = staticKey;
    handshake.#ephemeral = ephemeral ?? (await generateKeyPair());
    const name = new Uint8Array(32);
    name.set(new TextEncoder().encode(PROTOCOL)); // shorter than a hash, so padded rather than hashed
    handshake.#chainingKey = name;
    handshake.#hash = await sha256(name, prologue);
    return handshake;
  }

  /** Whether all three messages are through. */
  get complete() {
    return this.#messages === XX.length;
  }

  /** Whether the next message is this side's to write. */
  get writes() {
    return !this.complete && (this.#messages % 2 === 0) === this.#initiator;
  }

  /** The next handshake message. */
  write(payload = EMPTY) {
    return this.#poisons(async () => {
      if (!this.writes) throw new NoiseError("it is not this side's turn to write");
      const parts = [];
      for (const step of XX[this.#messages]) {
        if (step === "e") {
          await this.#mixHash(this.#ephemeral.publicKey);
          parts.push(this.#ephemeral.publicKey);
        } else if (step === "s") {
          parts.push(await this.#encryptAndHash(this.#static.publicKey));
        } else {
          await this.#mixDh(step);
        }
      }
      parts.push(await this.#encryptAndHash(payload));
      const message = joined(parts);
      if (message.length > MAX_MESSAGE) throw new NoiseError("a payload is too long for a handshake message");
      this.#messages += 1;
      return message;
    });
  }

  /** The payload of the peer's next handshake message. */
  read(message) {
    return this.#poisons(async () => {
      if (this.complete || this.writes) throw new NoiseError("it is not the peer's turn to write");
      if (message.length > MAX_MESSAGE) throw new NoiseError(`a message can't have ${message.length} bytes`);
      let rest = message;
      const take = (length) => {
        if (rest.length < length) throw new NoiseError("a handshake message is too short");
        const taken = rest.slice(0, length);
        rest = rest.slice(length);
        return taken;
      };
      for (const step of XX[this.#messages]) {
        if (step === "e") {
          this.#remote.e = take(KEY);
          await this.#mixHash(this.#remote.e);
        } else if (step === "s") {
          this.#remote.s = await this.#decryptAndHash(take(KEY + TAG));
        } else {
          await this.#mixDh(step);
        }
      }
      if (this.#cipher.hasKey && rest.length < TAG) throw new NoiseError("a handshake message is too short");
      const payload = await this.#decryptAndHash(rest);
      this.#messages += 1;
      return payload;
    });
  }

  /** The transport, once `complete`. The handshake is used up by it. */
  async split() {
    const transport = await this.#poisons(async () => {
      if (!this.complete) throw new NoiseError("the handshake is not complete");
      const [first, second] = (await hkdf(this.#chainingKey, EMPTY)).map((key) => new CipherState(key));
      const [sending, receiving] = this.#initiator ? [first, second] : [second, first];
      return new Transport(sending, receiving, this.#hash, this.#remote.s);
    });
    this.#poisoned = true;
    this.#forget();
    return transport;
  }

  async #poisons(work) {
    if (this.#poisoned) throw spent();
    try {
      if (this.#busy) throw new NoiseError("one step of a handshake comes after the other");
      this.#busy = true;
      return await work();
    } catch (error) {
      this.#poisoned = true;
      this.#forget();
      throw told(error);
    } finally {
      this.#busy = false;
    }
  }

  #forget() {
    this.#static = this.#ephemeral = this.#chainingKey = null;
    this.#cipher = new CipherState();
  }

  async #mixHash(data) {
    this.#hash = await sha256(this.#hash, data);
  }

  /** Mix in a Diffie-Hellman result; in the step's name the initiator's key stands first. */
  async #mixDh(step) {
    const [mine, theirs] = this.#initiator ? step : [step[1], step[0]];
    const { privateKey } = mine === "e" ? this.#ephemeral : this.#static;
    let shared;
    try {
      const publicKey = await crypto.subtle.importKey("raw", this.#remote[theirs], DH, false, []);
      shared = await crypto.subtle.deriveBits({ ...DH, public: publicKey }, privateKey, 8 * KEY);
    } catch {
      throw new NoiseError("the peer's key is not a valid one");
    }
    shared = new Uint8Array(shared);
    // A point of small order, by which the peer would fix the secret. Browsers refuse it, too.
    if (shared.every((byte) => byte === 0)) throw new NoiseError("the peer's key is not a valid one");
    const [chainingKey, key] = await hkdf(this.#chainingKey, shared);
    this.#chainingKey = chainingKey;
    this.#cipher = new CipherState(key);
  }

  async #encryptAndHash(plaintext) {
    const ciphertext = await this.#cipher.encrypt(this.#hash, plaintext);
    await this.#mixHash(ciphertext);
    return ciphertext;
  }

  async #decryptAndHash(ciphertext) {
    const plaintext = await this.#cipher.decrypt(this.#hash, ciphertext);
    await this.#mixHash(ciphertext);
    return plaintext;
  }
}

function spent() {
  return new NoiseError("this state failed before and is of no more use");
}

/** WebCrypto says `OperationError`, without a text, for what does not authenticate. */
function told(error) {
  return error?.name === "OperationError" ? new NoiseError("a message does not authenticate") : error;
}

function aesKey(raw) {
  return crypto.subtle.importKey("raw", raw, "AES-GCM", false, ["encrypt", "decrypt"]);
}

/** AESGCM of section 12.4: 32 zero bits, then the number in 64 bits big-endian. */
function iv(number) {
  const bytes = new Uint8Array(12);
  new DataView(bytes.buffer).setBigUint64(4, BigInt(number));
  return bytes;
}

/** HKDF with two outputs (section 4.3). */
async function hkdf(chainingKey, material) {
  const temporary = await hmac(chainingKey, material);
  const first = await hmac(temporary, Uint8Array.of(1));
  return [first, await hmac(temporary, joined([first, Uint8Array.of(2)]))];
}

async function hmac(key, data) {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const imported = await crypto.subtle.importKey("raw", key, algorithm, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, data));
}
