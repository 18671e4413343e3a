// Who is at the other end: this browser's own key, and the rules by which the peer's key is accepted. The
// mirror of relay/client/peers.py; keys and known peers are kept by the browser, for this origin.

import { generateKeyPair } from "./noise.js";
import { fingerprint } from "./wire.js";

const RSA = "RSASSA-PKCS1-v1_5";
/** How WebCrypto calls each JWT algorithm. Never HS: the relay knows the secret and could vouch for itself. */
const ASYMMETRIC = {
  RS256: { name: RSA, hash: "SHA-256" },
  RS384: { name: RSA, hash: "SHA-384" },
  RS512: { name: RSA, hash: "SHA-512" },
  ES256: { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" },
  ES384: { name: "ECDSA", namedCurve: "P-384", hash: "SHA-384" },
  ES512: { name: "ECDSA", namedCurve: "P-521", hash: "SHA-512" },
  EdDSA: { name: "Ed25519" },
};

/** Claim `token_type` of a vouching token: the relay lets no one in with it, as it is not `access`. */
const VOUCHING = "vouching";

const KNOWN = "lem-relay.peer.";
const DATABASE = "lem-relay";

/** The peer's key is not the one it has to be. Nothing was sent to it and nothing taken from it. */
export class PeerRefused extends Error {}

/** What was filled in can't be used as a rule. */
export class RuleError extends Error {}

/** The peer has the key with this fingerprint, `SHA256:...`. */
export class Fingerprint {
  note = "the one that you gave";

  constructor(expected) {
    this.expected = expected.trim().replace(/=+$/, "");
    if (!/^SHA256:[A-Za-z0-9+/]{43}$/.test(this.expected)) {
      throw new RuleError("A fingerprint is SHA256: and 43 characters: what the other side shows as its key.");
    }
  }

  async check(key) {
    const found = await fingerprint(key);
    if (found !== this.expected) throw new PeerRefused(`the peer's key is ${found}, not ${this.expected}`);
  }

  async accepted() {}
}

/** The peer's vouching token, signed by whoever has the private key to `pem` (SPKI), names its key. */
export class SignedClaim {
  note = "the one that its vouching token names, signed by the key that you gave";

  constructor(pem) {
    const found = /^-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----$/.exec(pem.trim());
    if (!found) throw new RuleError("A public key is a text that begins with -----BEGIN PUBLIC KEY-----.");
    try {
      this.spki = bytesOf(found[1].replace(/\s/g, ""));
    } catch {
      throw new RuleError("The text between the first and the last line of the public key is not base64.");
    }
  }

  async check(key, sessionId, vouching) {
    if (vouching.length === 0) throw new PeerRefused("the peer sent no token that vouches for its key");
    const claims = await this.#verified(new TextDecoder().decode(vouching));
    if (claims.token_type !== VOUCHING) {
      throw new PeerRefused("the token that the peer sent is none that vouches for a key");
    }
    if (claims.session_id !== sessionId) {
      throw new PeerRefused("the token that vouches for the peer's key is for another session");
    }
    if (claims.noise_key !== (await fingerprint(key))) {
      throw new PeerRefused("the token that the peer sent vouches for another key");
    }
  }

  async accepted() {}

  async #verified(token) {
    const refused = (why) => new PeerRefused(`the token that vouches for the peer's key is not valid: ${why}`);
    const read = parsed(token);
    if (!read) throw refused("it can't be read");
    const algorithm = Object.hasOwn(ASYMMETRIC, read.header.alg) ? ASYMMETRIC[read.header.alg] : null;
    if (!algorithm) throw refused("its algorithm is not one that proves who signed it");
    if ("crit" in read.header) throw refused("it needs an extension that is not known here");
    let genuine;
    try {
      const key = await crypto.subtle.importKey("spki", this.spki, algorithm, false, ["verify"]);
      genuine = await crypto.subtle.verify(algorithm, key, read.signature, read.signed);
    } catch (error) {
      if (error.name === "NotSupportedError") throw refused("this browser can't verify its kind of signature");
      throw refused("it is signed by another kind of key");
    }
    if (!genuine) throw refused("its signature is another key's");
    const now = Date.now() / 1000;
    const { exp, nbf, iat } = read.claims;
    if (!Number.isFinite(exp)) throw refused("it has no expiry");
    if (exp <= now) throw refused("it has expired");
    for (const since of [nbf, iat]) {
      if (since !== undefined && !(Number.isFinite(since) && since <= now)) throw refused("its time has not come");
    }
    return read.claims;
  }
}

/** Whoever comes first under a name is remembered, all others refused: trust on first use. */
export class KnownPeers {
  note = "";

  constructor(name) {
    if (!/^\S{1,200}$/u.test(name)) throw new RuleError("A peer’s name has no blanks.");
    if (!storage()) throw new RuleError("This browser keeps nothing for this page: give the peer’s key instead.");
    this.name = name;
  }

  async check(key) {
    const known = localStorage.getItem(KNOWN + this.name);
    const found = await fingerprint(key);
    if (known !== null && known !== found) {
      throw new PeerRefused(
        `THE KEY OF “${this.name}” HAS CHANGED: it was ${known}, now it is ${found}. Someone may be in between. ` +
          "If the peer did get a new key, forget the old one under “Known peers” and join again",
      );
    }
    this.note =
      known === null
        ? `the first key seen under the name “${this.name}”, which is remembered from now on`
        : `the same key as ever under the name “${this.name}”`;
  }

  async accepted(key) {
    if (localStorage.getItem(KNOWN + this.name) === null) {
      localStorage.setItem(KNOWN + this.name, await fingerprint(key));
    }
  }
}

/** Names and fingerprints of the peers that are remembered. */
export function knownPeers() {
  return Object.entries(storage() ?? {})
    .filter(([name]) => name.startsWith(KNOWN))
    .map(([name, value]) => [name.slice(KNOWN.length), value])
    .sort();
}

/** The browser's storage for this page; null where it gives none, as some do in private windows. */
function storage() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

/** Accept any key under this name the next time. */
export function forget(name) {
  localStorage.removeItem(KNOWN + name);
}

/**
 * This browser's key pair, made when there is none. The private half can be used by this page, and be read by
 * nobody. `kept` says whether it will be the same the next time: some browsers keep nothing in private windows.
 */
export async function ownKey() {
  const made = await generateKeyPair();
  try {
    return { ...(await keep(made)), kept: true };
  } catch {
    return { ...made, kept: false };
  }
}

/** The pair that is kept, which is `made` where there was none: in one transaction, as other tabs do so, too. */
function keep(made) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("keys");
    opening.onerror = opening.onblocked = () => reject(opening.error);
    opening.onsuccess = () => {
      const database = opening.result;
      const transaction = database.transaction("keys", "readwrite");
      const keys = transaction.objectStore("keys");
      let pair = made;
      const getting = keys.get("own");
      getting.onsuccess = () => {
        if (getting.result) pair = getting.result;
        else keys.put(made, "own");
      };
      transaction.oncomplete = () => {
        database.close();
        resolve(pair);
      };
      transaction.onabort = () => reject(transaction.error);
    };
  });
}

/**
 * The handshake payload that shows a vouching token; empty where `token` is.
 *
 * Fails with `RuleError` where the peer could not accept it, or where it may open more than it has to.
 */
export function vouching(token, ownFingerprint, sessionId) {
  if (!token) return new Uint8Array(0);
  const read = parsed(token);
  const problem =
    (!read && "can’t be read") ||
    (read.claims.token_type !== VOUCHING && `has no claim token_type “${VOUCHING}”, so it is not shown`) ||
    (!Object.hasOwn(ASYMMETRIC, read.header.alg) && "is not signed with a private key, so it proves nothing") ||
    (read.claims.session_id !== sessionId && "is for another session") ||
    (read.claims.noise_key !== ownFingerprint && `is not for this browser’s key, ${ownFingerprint}`);
  if (problem) throw new RuleError(`The vouching token ${problem}.`);
  return new TextEncoder().encode(token);
}

/** The claims of a token, unverified (the relay decides); null where it isn't one. */
export function claimsOf(token) {
  return parsed(token)?.claims ?? null;
}

function parsed(token) {
  const parts = token.split(".");
  if (parts.length !== 3 || !parts.every((part) => /^[A-Za-z0-9_-]+$/.test(part))) return null;
  try {
    const [header, claims] = parts.slice(0, 2).map((part) => object(new TextDecoder().decode(bytesOf(part))));
    return {
      header,
      claims,
      signature: bytesOf(parts[2]),
      signed: new TextEncoder().encode(`${parts[0]}.${parts[1]}`),
    };
  } catch {
    return null;
  }
}

function object(text) {
  const value = JSON.parse(text);
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new TypeError("not an object");
  return value;
}

/** The bytes of a base64 text of either alphabet. */
function bytesOf(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
}
