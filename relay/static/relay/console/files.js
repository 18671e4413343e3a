// Files, text and probes over a connection: what relay/client/files.py writes down, in both directions at once.

export const PIECE = 1024 * 1024 - 1;
/**
 * Bytes of the largest file, sent or taken. WebCrypto digests a file in one go only, so all of it has to be in
 * memory once: browsers give a page a few times this.
 */
export const MAX_FILE = 1e9;
/** Bytes of received files that the page holds until they are removed from it. */
export const MAX_HELD = 2 * MAX_FILE;
/** Files on the page, so that a peer can't fill it with empty ones. */
const MAX_FILES = 1000;
/** Offers that were refused, after which a peer that goes on is left. */
const MAX_REFUSED = 100;
/** Bytes of a name: what the Python client takes. */
const MAX_NAME = 180;
const MAX_PROBE = 16;
/** Received bytes that become a blob, which browsers keep outside of the page's memory. */
const CHUNK = 4 * 1024 * 1024;

const encoder = new TextEncoder();

/** The peer does not keep to the file protocol. */
export class TransferBroken extends Error {}

/** A file can't be sent or taken; the message says why. */
export class TransferRefused extends Error {}

/** `name` where it is a plain file name on every system. */
export function safeName(name) {
  const plain =
    typeof name === "string" &&
    name === name.trim() &&
    !name.startsWith(".") &&
    !/[/\\:*?"<>|\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u.test(name) &&
    name.length > 0 &&
    encoder.encode(name).length <= MAX_NAME;
  if (!plain) throw new TransferRefused(`${JSON.stringify(name)} is not a name that files are taken under`);
  return name;
}

/** A number of bytes for people, in the units of file managers. */
export function readable(bytes) {
  if (bytes < 1000) return `${Math.round(bytes)} B`;
  const unit = Math.min(3, Math.floor(Math.log10(bytes) / 3));
  return `${(bytes / 1000 ** unit).toFixed(1).replace(/\.0$/, "")} ${["", "kB", "MB", "GB"][unit]}`;
}

async function hexDigest(blob) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * The files of a page, over one connection after the other: what a dropped one left unfinished goes on.
 *
 * onchange: called with a file whenever there is news of it. A file has `name`, `size`, `at` (bytes that are
 * through), `state` and `why`. States of files that go out: queued, offered, reading, sending, checking, done,
 * refused, failed. Of files that come in: receiving, checking, done (with `blob`), refused, broken off.
 * onsaid: called with the peer's text. onprobed: called with the body of a probe that came back.
 */
export class Transfers {
  #peer = null;
  #answers = [];
  #waiting = null;
  #working = false;
  #incoming = null;
  #handlers;
  outgoing = [];
  received = [];

  constructor(handlers) {
    this.#handlers = handlers;
  }

  /** Whether a file is under way or still to go. */
  get busy() {
    return this.#incoming !== null || this.outgoing.some(unfinished);
  }

  /** Send a `File` as soon as those before it are through; a file that can't be is told at once. */
  add(file) {
    const item = { file, name: file.name, size: file.size, at: 0, state: "queued", why: "", digest: null };
    try {
      safeName(file.name);
      if (file.size > MAX_FILE) {
        throw new TransferRefused(`this page sends files up to ${readable(MAX_FILE)}: the Python client has no limit`);
      }
    } catch (error) {
      Object.assign(item, { state: "refused", why: error.message });
    }
    this.outgoing.push(item);
    this.#handlers.onchange(item);
    this.#work();
  }

  /** Let go of a received file. */
  remove(item) {
    this.received = this.received.filter((other) => other !== item);
  }

  /** Go on over this connection, whose messages `take` gets from now on. */
  attach(peer) {
    this.#peer = peer;
    this.#answers = [];
    this.#work();
  }

  /** The connection is gone; with `error` nothing of what was under way goes on. */
  detach(error = null) {
    this.#peer = null;
    this.#incoming = null;
    this.#waiting?.reject(error ?? new TransferBroken("the connection dropped"));
    this.#waiting = null;
    if (!error) return;
    for (const item of this.outgoing.filter(unfinished)) this.#change(item, "failed", error.message);
    for (const item of this.received.filter(unfinished)) this.#change(item, "failed", error.message);
  }

  /**
   * The peer said that nothing follows: what it would have to answer or to send can't come any more. Gives
   * whether that was nothing.
   */
  finish() {
    const whole = ![...this.outgoing, ...this.received].some(unfinished);
    this.detach(new Error("the peer has finished"));
    return whole;
  }

  /** A message of the peer's (Uint8Array). Fails with `TransferBroken` and what the connection fails with. */
  async take(message) {
    const body = message.subarray(1);
    switch (String.fromCharCode(message[0] ?? 0)) {
      case "J":
        return this.#takeObject(json(body));
      case "D":
        return this.#takePiece(body);
      case "T":
        return this.#handlers.onsaid(new TextDecoder().decode(body));
      case "P":
        if (body.length > MAX_PROBE) break;
        return this.#send("Q", body);
      case "Q":
        return this.#handlers.onprobed(body);
    }
    throw new TransferBroken("the peer does not speak the file protocol");
  }

  /** Text for the person at the other end. */
  say(text) {
    return this.#send("T", encoder.encode(text));
  }

  /** A probe, which comes back to `onprobed`. */
  probe(body) {
    return this.#send("P", body);
  }

  async #send(kind, body) {
    const message = new Uint8Array(1 + body.length);
    message[0] = kind.charCodeAt(0);
    message.set(body, 1);
    await this.#peer?.send(message);
  }

  #tell(values) {
    return this.#send("J", encoder.encode(JSON.stringify(values)));
  }

  #change(item, state, why = "") {
    Object.assign(item, { state, why });
    this.#handlers.onchange(item);
  }

  // What goes out.

  async #work() {
    if (this.#working) return;
    this.#working = true;
    try {
      let item;
      while (this.#peer && (item = this.outgoing.find(unfinished))) await this.#sendOne(this.#peer, item);
    } finally {
      this.#working = false;
    }
    if (this.#peer && this.outgoing.some(unfinished)) this.#work(); // it came while the last one failed
  }

  async #sendOne(peer, item) {
    try {
      await item.file.slice(0, 1).arrayBuffer(); // a folder can't be read, and what was deleted meanwhile
      if (peer !== this.#peer) return;
      item.digest ??= hexDigest(item.file); // while it is sent
      item.digest.catch(() => {});
      this.#change(item, "offered");
      await this.#tell({ name: item.name, size: item.size });
      item.at = count(await this.#answer("have"), item.size);
      if (item.at > 0) {
        await this.#tellDigest(peer, item, item.at < item.size ? hexDigest(item.file.slice(0, item.at)) : item.digest);
        item.at = begin(await this.#answer("begin"), item.at);
      }
      this.#change(item, "sending");
      await this.#sendRest(peer, item);
      await this.#tellDigest(peer, item, item.digest);
      this.#change(item, "checking");
      await this.#answer("done");
      this.#change(item, "done");
    } catch (error) {
      if (error instanceof TransferRefused) return this.#change(item, "refused", error.message);
      // A file that changed or went away since it was chosen can't be read.
      if (error instanceof DOMException) return this.#unreadable(peer, item);
      if (peer === this.#peer && error instanceof TransferBroken) {
        this.#change(item, "failed", error.message);
        return peer.fail(error);
      }
      if (peer === this.#peer) this.#peer = null; // the connection failed; whoever reads from it says how
      if (unfinished(item)) this.#change(item, "queued"); // it goes on over the next connection
    }
  }

  #unreadable(peer, item) {
    const offered = item.state !== "queued";
    this.#change(item, "failed", "it can't be read any more: did it change since it was chosen?");
    // The peer waits for the rest, and there is no way to call it off.
    if (offered) peer.fail(new TransferBroken(`${item.name} can't be read any more`));
  }

  async #sendRest(peer, item) {
    const read = (at) => item.file.slice(at, at + PIECE).arrayBuffer();
    let next = item.at < item.size ? read(item.at) : null;
    while (next) {
      const piece = new Uint8Array(await next);
      const at = item.at + piece.length;
      next = at < item.size ? read(at) : null; // read while the one before is sent
      next?.catch(() => {});
      if (peer !== this.#peer) throw new TransferBroken("the connection dropped");
      await this.#send("D", piece);
      item.at = at;
      this.#handlers.onchange(item);
    }
  }

  async #tellDigest(peer, item, digest) {
    this.#change(item, "reading");
    const sha256 = await digest;
    if (peer !== this.#peer) throw new TransferBroken("the connection dropped");
    await this.#tell({ sha256 });
  }

  async #answer(wanted) {
    const answer = await new Promise((resolve, reject) => {
      if (this.#answers.length > 0) resolve(this.#answers.shift());
      else this.#waiting = { resolve, reject };
    });
    if ("refused" in answer) throw new TransferRefused(`the receiver refuses: ${printable(answer.refused)}`);
    if (!(wanted in answer)) throw new TransferBroken("the peer did not answer on a file");
    return answer[wanted];
  }

  // What comes in.

  async #takeObject(values) {
    if ("name" in values) return this.#takeOffer(values);
    if ("sha256" in values) return this.#takeDigest(values);
    if (!this.#working) throw new TransferBroken("the peer answers what was not asked");
    if (this.#waiting) {
      this.#waiting.resolve(values);
      this.#waiting = null;
    } else if (this.#answers.push(values) > 1) {
      throw new TransferBroken("the peer answers what was not asked");
    }
  }

  async #takeOffer({ name, size }) {
    if (this.#incoming) throw new TransferBroken("the peer offers a file while it sends another");
    if (!Number.isSafeInteger(size) || size < 0) throw new TransferBroken("the peer offered a file without a size");
    const alike = this.received.filter((other) => same(other, name, size) && other.state !== "refused");
    // What is unfinished goes on, also where it had failed. Of nothing there is no other content.
    let item = alike.find(({ blob }) => !blob || size === 0);
    try {
      safeName(name);
      this.#roomFor(size, item ?? alike[0]);
    } catch (error) {
      return this.#refuse({ name: printable(name), size, at: 0 }, error.message);
    }
    if (alike.length === 0) item = this.#begin(name, size);
    this.#incoming = { name, size, item, comparing: !item || item.at > 0 };
    if (item && !item.blob) this.#change(item, "receiving");
    await this.#tell({ have: item ? item.at : size });
  }

  #begin(name, size) {
    const item = { name, size, digest: null, blob: null };
    clear(item);
    this.received.push(item);
    return item;
  }

  async #takeDigest({ sha256 }) {
    const incoming = this.#incoming;
    const wanted = incoming && (incoming.comparing || incoming.item.at === incoming.size);
    if (!wanted || !/^[0-9a-f]{64}$/.test(sha256)) {
      throw new TransferBroken("the peer says a SHA-256 that was not asked for");
    }
    if (incoming.comparing) return this.#compare(incoming, sha256);
    if (incoming.item.digest && incoming.item.digest !== sha256) {
      throw new TransferBroken("the peer says another SHA-256 than before");
    }
    this.#incoming = null;
    await this.#check(incoming.item, sha256);
  }

  /** Find out whether what is here is of the file that is offered, and where to begin. */
  async #compare(incoming, sha256) {
    const { name, size } = incoming;
    if (incoming.item) {
      const { chunks, chunk, filled } = incoming.item;
      const here = new Blob(chunk ? [...chunks, chunk.subarray(0, filled)] : chunks);
      if ((await hexDigest(here)) !== sha256) clear(incoming.item);
    } else {
      // It came over before the session dropped, or it is another one of that name.
      incoming.item = this.received.find((other) => same(other, name, size) && other.digest === sha256);
    }
    if (!incoming.item) {
      try {
        this.#roomFor(size, null);
      } catch (error) {
        this.#incoming = null;
        return this.#refuse({ name, size, at: 0 }, error.message);
      }
      incoming.item = this.#begin(name, size);
    }
    incoming.comparing = false;
    if (!incoming.item.blob) this.#change(incoming.item, "receiving");
    await this.#tell({ begin: incoming.item.at });
  }

  /** Refuse what the page could not hold beside all that is on it but `replaced`. */
  #roomFor(size, replaced) {
    if (size > MAX_FILE) {
      throw new TransferRefused(`a browser takes files up to ${readable(MAX_FILE)}, and this one is larger`);
    }
    const others = this.received.filter((item) => item.state !== "refused" && item !== replaced);
    const bytes = others.reduce((sum, item) => sum + item.size, size);
    if (bytes > MAX_HELD || others.length >= MAX_FILES) {
      throw new TransferRefused("the browser holds as many received files as it takes: save and remove some first");
    }
  }

  async #refuse(item, why) {
    this.#change(item, "refused", why);
    if (!this.received.includes(item)) this.received.push(item);
    if (this.received.filter(({ state }) => state === "refused").length > MAX_REFUSED) {
      throw new TransferBroken("the peer goes on offering what can't be taken");
    }
    await this.#tell({ refused: why });
  }

  async #takePiece(piece) {
    const { item, comparing } = this.#incoming ?? {};
    if (!item || comparing || piece.length === 0 || piece.length > item.size - item.at) {
      throw new TransferBroken("the peer sent something else than the rest of a file");
    }
    for (let at = 0; at < piece.length; ) {
      item.chunk ??= new Uint8Array(Math.min(CHUNK, item.size - item.at));
      const part = piece.subarray(at, at + item.chunk.length - item.filled);
      item.chunk.set(part, item.filled);
      item.filled += part.length;
      item.at += part.length;
      at += part.length;
      if (item.filled === item.chunk.length) {
        item.chunks.push(new Blob([item.chunk]));
        Object.assign(item, { chunk: null, filled: 0 });
      }
    }
    this.#handlers.onchange(item);
  }

  async #check(item, sha256) {
    if (!item.blob) {
      this.#change(item, "checking");
      const blob = new Blob(item.chunks, { type: "application/octet-stream" });
      const digest = await hexDigest(blob);
      if (digest !== sha256) {
        clear(item);
        return this.#refuse(item, `${item.name} came over damaged (its SHA-256 is another); what came is deleted`);
      }
      Object.assign(item, { blob, digest, chunks: [] });
      this.#change(item, "done");
    }
    await this.#tell({ done: true });
  }
}

/** What a peer says, made safe to show: without what would turn the text around or hide in it. */
export function printable(text, length = 300) {
  return String(text).slice(0, length).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, "\ufffd");
}

function unfinished(item) {
  return !["done", "refused", "failed"].includes(item.state);
}

function same(item, name, size) {
  return item.name === name && item.size === size;
}

/** Forget what has come of a file. */
function clear(item) {
  Object.assign(item, { at: 0, chunks: [], chunk: null, filled: 0 });
}

function count(value, most) {
  if (!Number.isSafeInteger(value) || value < 0 || value > most) {
    throw new TransferBroken("the peer says that it has more than there is");
  }
  return value;
}

function begin(value, at) {
  if (value !== 0 && value !== at) throw new TransferBroken("the peer begins where it has nothing");
  return value;
}

function json(body) {
  let value;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    value = null;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new TransferBroken("the peer does not speak the file protocol");
  }
  return value;
}
