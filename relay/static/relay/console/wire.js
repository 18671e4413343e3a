// What two peers say to each other through the relay, without I/O: hello, handshake's prologue, records, words.
// The protocol is written down in relay/client/wire.py; this is its mirror.

import { joined, MAX_MESSAGE, sha256, TAG } from "./noise.js";

const encoder = new TextEncoder();

export const VERSION = encoder.encode("lem-relay/1");
/** Random bytes in a hello. */
export const NONCE = 16;
/** Bytes of the longest body of a record. */
export const MAX_BODY = MAX_MESSAGE - TAG - 1;
/** Transport messages between two rekeys of a direction: at most 1 GiB under one key. */
export const REKEY_MESSAGES = 16_384;
/** Bytes of the longest message that is put together again. */
export const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;
/** Close code by which a side tells that it does not accept its peer. */
export const REFUSED = 3403;

/** The types of records. */
export const READY = 0;
export const MORE = 1;
export const LAST = 2;
export const END = 3;

const CONSONANTS = "bdfghjklmnprstvz";
const VOWELS = "aiou";

/** The peer, or whoever is in between, does not keep to the protocol. */
export class WireError extends Error {}

/** A new hello. */
export function hello() {
  return joined([VERSION, crypto.getRandomValues(new Uint8Array(NONCE))]);
}

/** Whether this side is the initiator, and the prologue, from the two hellos. */
export function agree(sessionId, ours, theirs) {
  if (theirs.length !== VERSION.length + NONCE || compared(theirs.subarray(0, VERSION.length), VERSION) !== 0) {
    throw new WireError("the peer does not speak lem-relay/1");
  }
  const order = compared(ours, theirs);
  if (order === 0) throw new WireError("the peer's hello is our own, reflected");
  const [first, second] = order > 0 ? [ours, theirs] : [theirs, ours];
  const nonces = [first, second].map((greeting) => greeting.subarray(VERSION.length));
  const zero = Uint8Array.of(0);
  return { initiator: order > 0, prologue: joined([VERSION, zero, encoder.encode(sessionId), zero, ...nonces]) };
}

/** Positive where `one` is the greater of two byte strings of the same length, 0 where they are equal. */
function compared(one, two) {
  const at = one.findIndex((byte, index) => byte !== two[index]);
  return at < 0 ? 0 : one[at] - two[at];
}

/** How a public key (32 bytes) is written for people. */
export async function fingerprint(publicKey) {
  return "SHA256:" + btoa(String.fromCharCode(...(await sha256(publicKey)))).replace(/=+$/, "");
}

/** Eight words that are equal on both sides if nobody is in between. */
export async function words(handshakeHash) {
  const digest = await sha256(VERSION, encoder.encode(" words"), handshakeHash);
  const view = new DataView(digest.buffer);
  return Array.from({ length: 8 }, (_, index) => word(view.getUint16(2 * index))).join("-");
}

function word(bits) {
  const consonant = (shift) => CONSONANTS[(bits >> shift) & 15];
  const vowel = (shift) => VOWELS[(bits >> shift) & 3];
  return consonant(12) + vowel(10) + consonant(6) + vowel(4) + consonant(0);
}

/** The records that carry an application's message (Uint8Array): pairs of type and body. */
export function parts(message) {
  const made = [];
  for (let at = 0; at < Math.max(message.length, 1); at += MAX_BODY) {
    const last = at + MAX_BODY >= message.length;
    made.push([last ? LAST : MORE, message.subarray(at, at + MAX_BODY)]);
  }
  return made;
}

/** Records over a Noise transport, both ways. Everything wrong fails with `WireError` or `NoiseError`. */
export class Channel {
  #transport;
  #sent = 0;
  #received = 0;
  #parts = [];
  #length = 0;
  #failed = null;
  /** Whether the peer's `ready` has come. */
  ready = false;
  /** Whether the peer's `end` has come. */
  ended = false;
  /** Whether this side has sent `end`. */
  closed = false;

  constructor(transport) {
    this.#transport = transport;
  }

  /** The WebSocket message that carries a record, soon. Messages are to be sent in the order of the calls. */
  seal(kind, body = new Uint8Array(0)) {
    if (this.closed) throw new WireError("nothing can be sent after the end");
    if ((kind === MORE || kind === LAST) && !this.ready) {
      throw new WireError("nothing can be sent before the peer is ready");
    }
    const record = new Uint8Array(1 + body.length);
    record[0] = kind;
    record.set(body, 1);
    const message = this.#transport.encrypt(record);
    this.#sent += 1;
    if (this.#sent % REKEY_MESSAGES === 0) this.#transport.rekeySending();
    this.closed = kind === END;
    return message;
  }

  /**
   * The application's message that `message` completes, or null where it completes none.
   *
   * May be called again before the last call is through: what comes of it is in the order of the calls.
   */
  open(message) {
    const plaintext = this.#transport.decrypt(message);
    this.#received += 1;
    if (this.#received % REKEY_MESSAGES === 0) this.#transport.rekeyReceiving();
    return plaintext.then((record) => {
      if (this.#failed) throw this.#failed;
      try {
        return this.#take(record);
      } catch (error) {
        this.#failed = error;
        throw error;
      }
    });
  }

  #take(record) {
    const kind = record[0];
    if (record.length === 0 || kind > END) throw new WireError("the peer sent a record of no known type");
    if (this.ended || (kind === READY) === this.ready) {
      throw new WireError("the peer sent a record out of its order");
    }
    const body = record.subarray(1);
    if (kind === READY || kind === END) {
      if (body.length > 0 || this.#parts.length > 0) {
        throw new WireError("the peer sent a record out of its order");
      }
      this.ready = true;
      this.ended = kind === END;
      return null;
    }
    this.#length += body.length;
    if (this.#length > MAX_MESSAGE_BYTES) {
      throw new WireError(`the peer sent a message of more than ${MAX_MESSAGE_BYTES} bytes`);
    }
    this.#parts.push(body);
    if (kind === MORE) {
      if (body.length === 0) throw new WireError("the peer sent an empty part, which would go on for ever");
      return null;
    }
    const whole = this.#parts.length === 1 ? body : joined(this.#parts);
    this.#parts = [];
    this.#length = 0;
    return whole;
  }
}
