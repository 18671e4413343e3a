// A connection to the peer of a session over the relay's WebSocket, encrypted end to end. The mirror of
// relay/client/connection.py, whose sentences and rules for coming back it has, too.

import { Handshake, NoiseError } from "./noise.js";
import { PeerRefused, vouching } from "./peers.js";
import { agree, Channel, END, fingerprint, hello, parts, READY, REFUSED, WireError, words } from "./wire.js";

/** Close codes by which the relay asks to come back: it restarts, can't admit now, or the peer came anew. */
export const COME_BACK = new Set([1012, 1013, 4411]);
/** Close codes after which what was under way is taken up again. */
export const DROPPED = new Set([1006, 1012, 1013, 4410, 4411, 4413, 4415]);

/** What each close code means, for people. */
export const SENTENCES = {
  1006: "the connection to the relay dropped",
  1009: "a message is larger than the relay allows",
  1012: "the relay restarts",
  1013: "the relay can't admit anyone just now",
  3403: "the peer does not accept our key",
  4401: "the relay does not accept the token: it is missing, expired or not valid",
  4403: "the token is for another session or role",
  4408: "the peer did not come in time",
  4409: "both places of this session are taken",
  4410: "the peer's connection dropped",
  4411: "a participant connected again, so the session begins anew",
  4412: "nothing passed either way for too long",
  4413: "the receiver took nothing while data waited for it",
  4414: "the session reached its longest duration",
  4415: "the link between two nodes of the relay broke",
  4429: "a quota is used up",
  4499: "an operator closed the session",
};

const HANDSHAKE_SECONDS = 30;
const PROTOCOL = "lem.relay.v1";
/** Bytes that the WebSocket has not sent at which sending waits: a few round trips of a fast link. */
const BUFFERED = 1024 * 1024;
/** As much in a tab that nobody looks at, whose timers browsers slow down to one a second. */
const BUFFERED_HIDDEN = 8 * BUFFERED;
/** Messages that are decrypted at once: WebCrypto has threads of its own. */
const AHEAD = 32;
/** Milliseconds after which a connection that ends was not just turned away. */
const LONG_MS = 10_000;
/** Bytes that are received and not yet decrypted at which it ends: a browser can't be told to read slower. */
const WAITING = 1024 * 1024 * 1024;

/**
 * The connection ended without the peer's end, so the last messages may be missing.
 *
 * `code` is the WebSocket close code, 1006 where it dropped; 0 where the relay could not be reached at all.
 */
export class Closed extends Error {
  constructor(code) {
    super(
      code === 0
        ? "can't connect to the relay"
        : SENTENCES[code] ?? `the peer left before it was done (close code ${code})`,
    );
    this.code = code;
  }
}

/**
 * One side of a session. Not reusable: make a new one to connect again.
 *
 * url: of the WebSocket. session, token: which, and the JWT that opens it. key: this side's static key pair.
 * rule: whom to accept. vouchingToken: shown to the peer as proof of our key; never the one that opens the
 * session. verify: called with the words for two people to compare and the peer's fingerprint, gives a promise
 * of whether they are equal. onstate: called with `waiting` (for the peer), `meeting`, `comparing`, `accepted` (by us, not
 * yet by the peer) and `connected`.
 */
export class Connection {
  #options;
  #socket;
  #channel = null;
  #incoming = [];
  #incomingBytes = 0;
  #wake = () => {};
  #sending = Promise.resolve();
  #failed = null;
  #gone;
  /** What two people compare to know that nobody is in between. */
  words = "";
  /** The peer's key as `SHA256:...`. */
  peerFingerprint = "";
  /** Bytes on the wire so far. */
  receivedBytes = 0;
  #sentBytes = 0;

  constructor(options) {
    this.#options = { vouchingToken: "", verify: null, onstate: () => {}, ...options };
  }

  /** Bytes that have left this browser. */
  get sentBytes() {
    return Math.max(0, this.#sentBytes - (this.#socket?.bufferedAmount ?? 0));
  }

  /** Whether messages can be sent: both sides have accepted each other, and this one has not ended. */
  get connected() {
    return this.#channel !== null && this.#channel.ready && !this.#channel.closed && !this.#failed;
  }

  /** Meet the peer. Fails with `Closed`, `PeerRefused`, `WireError` or `NoiseError`. */
  async open() {
    await this.#connect();
    try {
      await this.#meet();
    } catch (error) {
      const refused = [PeerRefused, WireError, NoiseError].some((kind) => error instanceof kind);
      this.close(refused ? REFUSED : 1000);
      throw error;
    }
  }

  /** Send a message (Uint8Array) of any length; done when there is room for the next one. */
  send(message) {
    return this.#seal(parts(message));
  }

  /** Tell the peer that this was all; its messages can still be received. Twice does no harm. */
  async end() {
    if (!this.#channel.closed) await this.#seal([[END, undefined]]);
  }

  /** The peer's messages until its end. Fails with `Closed` where the connection ends before that. */
  async *messages() {
    const opening = [];
    try {
      while (!this.#channel.ended) {
        while (this.#incoming.length > 0 && opening.length < AHEAD) {
          const opened = this.#channel.open(this.#shift());
          opened.catch(() => {}); // its turn to fail comes below
          opening.push(opened);
        }
        if (opening.length > 0) {
          const message = await opening.shift();
          if (message !== null) yield message;
        } else {
          await this.#arrival();
        }
      }
    } catch (error) {
      this.close(1000);
      throw error;
    }
  }

  /** Leave. Without `end` before, the peer sees it cut short. Browsers know no codes but 1000 and 3000-4999. */
  close(code = 1000) {
    this.#socket?.close(code);
  }

  /** Leave because of `error`, with which everything that is asked of the connection fails from now on. */
  fail(error) {
    this.#failed ??= error;
    this.#socket.close(); // does nothing where it is closed
    this.#wake();
  }

  async #connect() {
    const { url, token } = this.#options;
    const socket = new WebSocket(url, [PROTOCOL, `bearer.${token}`]);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#gone = new Promise((_, reject) => {
      let opened = false;
      socket.onopen = () => {
        opened = true;
        this.#wake();
      };
      socket.onclose = (event) => {
        this.fail(new Closed(opened ? event.code : 0));
        reject(this.#failed);
      };
    });
    this.#gone.catch(() => {}); // whoever waits has it from `#failed`
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") return this.fail(new WireError("the peer sent a text message"));
      this.receivedBytes += data.byteLength;
      this.#incomingBytes += data.byteLength;
      this.#incoming.push(new Uint8Array(data));
      if (this.#incomingBytes > WAITING) this.fail(new WireError("the peer sends faster than this browser takes"));
      this.#wake();
    };
    while (socket.readyState === WebSocket.CONNECTING) await this.#awake();
    if (this.#failed) throw this.#failed;
  }

  /** Hello, handshake, and the checks of the peer, up to both sides being ready. */
  async #meet() {
    const { session, rule, verify, onstate } = this.#options;
    const ours = hello();
    this.#send(ours);
    onstate("waiting");
    const theirs = await this.#receive(); // comes with the peer, for which the relay has a time-out
    const { initiator, prologue } = agree(session, ours, theirs);
    onstate("meeting");
    const { transport, vouched } = await this.#shakeHands(initiator, prologue);
    this.peerFingerprint = await fingerprint(transport.remoteStatic);
    this.words = await words(transport.handshakeHash);
    await rule.check(transport.remoteStatic, session, vouched);
    if (verify) {
      const equal = await Promise.race([verify(this.words, this.peerFingerprint), this.#gone]);
      if (!equal) throw new PeerRefused("the words on the two sides are not the same");
    }
    await rule.accepted(transport.remoteStatic, session);
    this.#channel = new Channel(transport);
    await this.#seal([[READY, undefined]]);
    onstate("accepted");
    await this.#channel.open(await this.#receive()); // nothing but `ready` can be first
    onstate("connected");
  }

  async #shakeHands(initiator, prologue) {
    const { session, key, vouchingToken } = this.#options;
    const late = () => this.fail(new WireError("the peer did not answer in time"));
    const timer = setTimeout(late, HANDSHAKE_SECONDS * 1000);
    try {
      const handshake = await Handshake.begin({ initiator, prologue, staticKey: key });
      const shown = vouching(vouchingToken, await fingerprint(key.publicKey), session);
      let vouched = new Uint8Array(0);
      for (let first = true; !handshake.complete; first = false) {
        if (handshake.writes) this.#send(await handshake.write(first ? new Uint8Array(0) : shown));
        else vouched = await handshake.read(await this.#receive());
      }
      return { transport: await handshake.split(), vouched };
    } finally {
      clearTimeout(timer);
    }
  }

  /** Seal the records now, which numbers them, and send them in that order, as there is room. */
  #seal(records) {
    const sealed = records.map(([kind, body]) => this.#channel.seal(kind, body));
    for (const message of sealed) message.catch(() => {}); // its turn to fail comes below
    this.#sending = this.#sending.then(async () => {
      for (const message of sealed) {
        this.#send(await message);
        await this.#room();
      }
    });
    this.#sending.catch(() => {}); // whoever sends next has it, too
    return this.#sending;
  }

  #send(message) {
    if (this.#failed) throw this.#failed;
    this.#socket.send(message);
    this.#sentBytes += message.length;
  }

  async #room() {
    while (this.#socket.bufferedAmount > (document.hidden ? BUFFERED_HIDDEN : BUFFERED)) {
      if (this.#failed) throw this.#failed;
      await new Promise((resolve) => setTimeout(resolve, 4)); // there is no event for it
    }
  }

  async #receive() {
    if (this.#incoming.length === 0) await this.#arrival();
    return this.#shift();
  }

  #shift() {
    const message = this.#incoming.shift();
    this.#incomingBytes -= message.length;
    return message;
  }

  /** Wait for a message; what came before the connection failed is still taken. */
  async #arrival() {
    while (this.#incoming.length === 0) {
      if (this.#failed) throw this.#failed;
      await this.#awake();
    }
  }

  #awake() {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

/**
 * `visit` again and again while the relay can't be reached, asks to come back, or the session dropped.
 *
 * visit: makes a connection, and calls what it is given once the peer is there. ontrying: called with the error
 * before a pause. signal: ends it. Gives up when nobody was met for `seconds`.
 */
export async function stay(visit, { seconds = 60, ontrying = () => {}, signal }) {
  let until = Date.now() + 1000 * seconds;
  let pause = 200;
  let dropped = false;
  for (;;) {
    const begun = Date.now();
    try {
      return await visit(() => {
        until = Infinity;
        dropped = true;
      });
    } catch (error) {
      if (until === Infinity || Date.now() - begun > LONG_MS) {
        until = Date.now() + 1000 * seconds;
        pause = 200;
      }
      // After a drop our own half-dead leg may hold its place for a while.
      const again = error.code === 0 || DROPPED.has(error.code) || (error.code === 4409 && dropped);
      if (!(error instanceof Closed) || !again || signal.aborted || Date.now() > until) throw error;
      ontrying(error);
    }
    // Spread out: all who were sent away by one restart don't return in one moment.
    await sleep(pause * (0.5 + Math.random() / 2), signal);
    pause = Math.min(2 * pause, 5000);
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    const stop = () => {
      clearTimeout(timer);
      reject(new Closed(1000));
    };
    signal.addEventListener("abort", stop, { once: true });
  });
}
