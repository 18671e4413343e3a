// The page: what people see and do. Whatever comes from a peer is shown as text, never as markup.

import { Closed, Connection, stay } from "./connection.js";
import { MAX_FILE, printable, readable, Transfers } from "./files.js";
import { claimsOf, Fingerprint, forget, KnownPeers, knownPeers, ownKey, PeerRefused, RuleError, SignedClaim, vouching } from "./peers.js";
import { EVERY_MS, Plot } from "./plot.js";
import { element, FileRows } from "./rows.js";
import { fingerprint } from "./wire.js";

const PROBE_MS = 1000;
/** Lines of a chat that stay on the page. */
const MAX_LINES = 500;
/** Milliseconds that the peer has to finish, too, when we leave. */
const LEAVE_MS = 10_000;

const $ = (id) => document.getElementById(id);

/** Why this browser can't run the console; empty where it can. */
async function lacking() {
  if (!window.isSecureContext || !crypto.subtle) {
    return (
      "Browsers encrypt on pages only that came over https, or from localhost. Open this page as " +
      `https://${location.host}${location.pathname}, or on the machine itself.`
    );
  }
  try {
    await crypto.subtle.generateKey({ name: "X25519" }, false, ["deriveBits"]);
  } catch {
    return (
      "It has no X25519 in WebCrypto, on which the encryption rests. Chromium has it from version 133 on, " +
      "Firefox from 132, and so has a current Safari. The command line works anywhere: python -m relay.client."
    );
  }
  return "";
}

class Console {
  #key;
  #ownFingerprint;
  #plot = new Plot($("plot"), $("plot-text"));
  #transfers = null;
  #connection = null;
  #leaving = null; // an AbortController while there is a session
  #left = false;
  #confirmed = new Set();
  #rows = new FileRows($("transfers"), (item) => {
    this.#transfers.remove(item);
    $("choose").focus();
  });
  #probe = null;
  #trip = null;

  async begin() {
    this.#key = await ownKey();
    this.#ownFingerprint = await fingerprint(this.#key.publicKey);
    $("own-fingerprint").textContent = this.#ownFingerprint;
    $("own-note").textContent = this.#key.kept
      ? "The private half is kept in this browser; no page, not even this one, can read it."
      : "This browser keeps nothing here: it has another key the next time.";
    $("limit").textContent = `Up to ${readable(MAX_FILE)} each: a browser has to hold all of a file at once.`;
    $("join").addEventListener("submit", (event) => this.#join(event));
    $("join").addEventListener("change", () => this.#showRule());
    $("token").addEventListener("input", () => this.#tokenChanged());
    $("session").addEventListener("input", () => this.#showInvitation());
    $("leave").addEventListener("click", () => this.#leave());
    $("invite").addEventListener("click", () => this.#invite());
    $("say").addEventListener("submit", (event) => this.#say(event));
    $("choose").addEventListener("click", () => $("chosen").click());
    $("chosen").addEventListener("change", () => this.#add($("chosen").files));
    for (const button of document.querySelectorAll("[data-copy]")) {
      button.addEventListener("click", () => copy(button, $(button.dataset.copy).textContent));
    }
    this.#letTalk(false);
    this.#receiveDrops();
    this.#readInvitation();
    this.#showKnown();
    setInterval(() => this.#measure(), EVERY_MS);
    setInterval(() => this.#sendProbe(), PROBE_MS);
    addEventListener("beforeunload", (event) => {
      if (this.#connection && this.#transfers?.busy) event.preventDefault();
    });
  }

  // Joining.

  /** `#token=...&session=...&peer=...`: never sent to a server, and gone from the address bar at once. */
  #readInvitation() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (location.hash) history.replaceState(null, "", location.pathname);
    $("token").value = given.get("token") ?? "";
    this.#tokenChanged();
    if (given.has("session")) $("session").value = given.get("session");
    if (given.has("peer")) {
      $("peer-key").value = given.get("peer");
      document.querySelector("input[value=fingerprint]").checked = true;
    }
    this.#showRule();
    this.#showInvitation();
    if (given.has("token")) this.#show("idle", "You are invited", "Join when you are ready.");
  }

  #tokenChanged() {
    const session = claimsOf($("token").value.trim())?.session_id;
    if (typeof session === "string") $("session").value = session;
    this.#showInvitation();
  }

  #showRule() {
    const chosen = $("join").elements.rule.value;
    for (const more of document.querySelectorAll("[data-rule]")) more.hidden = more.dataset.rule !== chosen;
  }

  #rule(session) {
    switch ($("join").elements.rule.value) {
      case "fingerprint":
        return new Fingerprint($("peer-key").value);
      case "signed":
        return new SignedClaim($("signer").value);
      default:
        return new KnownPeers($("peer-name").value.trim() || session);
    }
  }

  async #join(event) {
    event.preventDefault();
    const token = $("token").value.trim();
    const session = $("session").value.trim();
    const vouchingToken = $("vouching").value.trim();
    $("problem").textContent = "";
    let rule;
    try {
      if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) {
        throw new RuleError("A token is one long line of letters and digits with two dots in it.");
      }
      if (!/^[A-Za-z0-9._~-]{1,128}$/.test(session)) {
        throw new RuleError("A session’s name is 1 to 128 of A-Z a-z 0-9 . _ ~ -");
      }
      rule = this.#rule(session);
      vouching(vouchingToken, this.#ownFingerprint, session);
    } catch (error) {
      if (!(error instanceof RuleError)) throw error;
      $("problem").textContent = error.message;
      return;
    }
    await this.#run({ token, session, rule, vouchingToken });
  }

  /** A session from joining to its end, over as many connections as it takes. */
  async #run(joining) {
    this.#leaving = new AbortController();
    this.#left = false;
    this.#confirmed.clear();
    this.#transfers ??= new Transfers({
      onchange: (item) => this.#showFile(item),
      onsaid: (text) => this.#line("peer", text),
      onprobed: (body) => this.#probed(body),
    });
    for (const id of ["join", "steps"]) $(id).hidden = true;
    $("lines").replaceChildren(); // what was said to another peer
    $("leave").hidden = false;
    $("leave").focus();
    try {
      const whole = await stay((met) => this.#visit(joining, met), {
        ontrying: (error) => this.#show("trying", "Trying again", `${capital(error.message)}.`),
        signal: this.#leaving.signal,
      });
      if (whole) this.#show("done", "Both sides are done", "All that was sent has arrived.");
      else this.#show("failed", "The peer has finished", "Not every file went over: see below which.");
    } catch (error) {
      this.#transfers.detach(this.#left ? new Error("you left") : error);
      if (this.#left) this.#show("done", "You left", "");
      else this.#show("failed", error instanceof PeerRefused ? "The peer was refused" : "Closed", told(error));
      if (!known(error)) throw error;
    } finally {
      this.#connection = null;
      this.#leaving = null;
      $("question").hidden = true;
      $("leave").hidden = true;
      $("leave").textContent = "Leave";
      this.#letTalk(false);
      $("join").hidden = false;
      this.#showInvitation();
      this.#showKnown();
      $("token").focus({ preventScroll: true });
    }
  }

  async #visit({ token, session, rule, vouchingToken }, met) {
    this.#show("connecting", "Connecting to the relay…", "");
    $("peer").hidden = true; // the words are new each time
    const url = new URL(`../relay/${session}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.hash = "";
    const verify = $("verify").checked ? (_, peer) => this.#ask(connection, peer) : null;
    const connection = new Connection({
      url, session, token, key: this.#key, rule, vouchingToken, verify,
      onstate: (state) => this.#progress(state, session, connection),
    });
    this.#connection = connection;
    this.#probe = this.#trip = null;
    const leave = () => connection.close();
    this.#leaving.signal.addEventListener("abort", leave);
    try {
      await connection.open();
      met();
      this.#connected(connection, rule);
      for await (const message of connection.messages()) await this.#transfers.take(message);
      const whole = this.#transfers.finish();
      await connection.end();
      connection.close(1000);
      return whole;
    } catch (error) {
      connection.close(1000);
      throw this.#left ? new Closed(1000) : error; // who left does not come back, whatever became of it
    } finally {
      this.#leaving.signal.removeEventListener("abort", leave);
      this.#transfers.detach();
    }
  }

  #progress(state, session, connection) {
    if (state === "waiting") {
      this.#showInvitation();
      this.#show("waiting", "Waiting for the peer…", `It has to join the session “${session}”, too.`);
    } else if (state === "meeting") {
      this.#show("waiting", "The peer is here", "Agreeing on keys.");
      $("invite").hidden = true; // both places are taken
      $("told").textContent = "";
    } else if (state === "accepted") {
      this.#show("waiting", "Waiting until the peer accepts you…", "It may be comparing the words.");
      this.#showPeer(connection, "");
    }
  }

  #connected(connection, rule) {
    this.#show("connected", "Connected", "Encrypted from here to the peer: the relay can’t read it.");
    this.#showPeer(connection, rule.note);
    for (const id of ["talk", "files", "live"]) $(id).hidden = false;
    this.#letTalk(true);
    $("text").focus({ preventScroll: true });
    this.#transfers.attach(connection);
    this.#measured = { at: performance.now(), received: 0, sent: 0, connection };
    this.#showKnown();
  }

  /** Have the words compared: once for each key in a session, however often it connects. */
  #ask(connection, peer) {
    if (this.#confirmed.has(peer)) return Promise.resolve(true);
    this.#show("waiting", "Compare the words", "Nothing passes before you say that they are the same.");
    this.#showPeer(connection, "");
    $("question").hidden = false;
    $("equal").focus();
    return new Promise((resolve) => {
      const answer = (equal) => () => {
        $("question").hidden = true;
        if (equal) this.#confirmed.add(peer);
        resolve(equal);
      };
      $("equal").onclick = answer(true);
      $("different").onclick = answer(false);
    });
  }

  async #leave() {
    this.#left = true;
    this.#letTalk(false);
    const connection = this.#connection;
    if (connection?.connected && !this.#transfers.busy) {
      setTimeout(() => connection.close(), LEAVE_MS);
      await connection.end(); // the peer's end comes next, and closes
    } else {
      this.#leaving?.abort();
    }
  }

  // What there is to see.

  #show(state, title, detail) {
    $("status").dataset.state = state;
    $("state").textContent = title;
    $("detail").textContent = detail;
  }

  #showPeer(connection, note) {
    $("peer").hidden = false;
    $("words").replaceChildren(...connection.words.split("-").map((word) => element("li", word)));
    $("peer-fingerprint").textContent = connection.peerFingerprint;
    const same = connection.peerFingerprint === this.#ownFingerprint;
    $("peer-note").textContent = same ? "That is this browser’s own key: you in another tab." : note && `It is ${note}.`;
  }

  #showKnown() {
    const peers = knownPeers();
    $("nobody").hidden = peers.length > 0;
    $("known").replaceChildren(
      ...peers.map(([name, key]) => {
        const button = element("button", "Forget");
        button.type = "button";
        button.setAttribute("aria-label", `Forget ${name}`);
        button.addEventListener("click", () => {
          forget(name);
          this.#showKnown();
          $("known").closest("details").querySelector("summary").focus();
        });
        const item = element("li");
        item.append(element("strong", name), element("code", key), button);
        return item;
      }),
    );
  }

  // Talking.

  /** Whether there is somebody to talk to and to send files to, also while a dropped connection comes back. */
  #letTalk(on) {
    for (const id of ["text", "send", "choose"]) $(id).disabled = !on;
  }

  async #say(event) {
    event.preventDefault();
    const text = $("text").value;
    if (!text || !this.#connection?.connected) return; // it stays in the field until somebody is there
    $("text").value = "";
    this.#line("own", text);
    await this.#transfers.say(text).catch(ignored);
  }

  #line(who, text) {
    const line = element("p");
    line.className = who;
    const said = element("bdi", printable(text, 10_000));
    line.append(element("span", who === "own" ? "You" : "Peer"), said);
    $("lines").append(line);
    while ($("lines").children.length > MAX_LINES) $("lines").firstChild.remove();
    $("lines").scrollTop = $("lines").scrollHeight;
  }

  // Files.

  #add(files) {
    for (const file of files) this.#transfers.add(file);
    $("chosen").value = "";
  }

  #receiveDrops() {
    const over = (on) => (event) => {
      const { dataTransfer, target } = event;
      const files = dataTransfer.types.includes("Files");
      if (!files && target.matches?.("input, textarea")) return; // text goes into a field as ever
      event.preventDefault();
      const taken = files && !$("choose").disabled;
      dataTransfer.dropEffect = taken ? "copy" : "none"; // the pointer tells it
      $("drop").classList.toggle("over", on && taken);
    };
    // Everywhere, as a browser would open a file that misses the box.
    addEventListener("dragover", over(true));
    addEventListener("dragleave", over(false));
    addEventListener("drop", (event) => {
      over(false)(event);
      if (!$("choose").disabled) this.#add(event.dataTransfer.files);
    });
  }

  #showFile(item) {
    this.#rows.show(item);
    $("leave").textContent = this.#transfers?.busy ? "Stop and leave" : "Leave";
  }

  // Measuring.

  #measured = { at: 0, received: 0, sent: 0, connection: null };

  #measure() {
    const connection = this.#connection;
    if (!connection?.connected) return;
    const now = performance.now();
    const { receivedBytes: received, sentBytes: sent } = connection;
    const last = this.#measured;
    this.#measured = { at: now, received, sent, connection };
    if (last.connection !== connection) return;
    const seconds = (now - last.at) / 1000;
    // A probe that is not back yet took that long already: a peer that is gone is not as near as it was.
    const late = this.#probe ? now - this.#probe.at : 0;
    const trip = this.#trip === null ? null : Math.max(this.#trip, late);
    this.#plot.add((received - last.received) / seconds, Math.max(0, sent - last.sent) / seconds, trip);
  }

  #sendProbe() {
    // A forgotten tab is silent, so that the relay's idle time-out ends its session.
    if (document.hidden || !this.#connection?.connected || this.#probe) return;
    const body = crypto.getRandomValues(new Uint8Array(8));
    this.#probe = { body: String(body), at: performance.now() };
    this.#transfers.probe(body).catch(ignored);
  }

  #probed(body) {
    if (this.#probe?.body !== String(body)) return;
    this.#trip = performance.now() - this.#probe.at;
    this.#probe = null;
  }

  // Inviting.

  /** A token that names its role opens one place only, so it can't be handed on. */
  #showInvitation() {
    const claims = claimsOf($("token").value.trim());
    $("invite").hidden = !claims || claims.role !== undefined || !$("session").value.trim();
  }

  async #invite() {
    const given = new URLSearchParams({
      session: $("session").value.trim(), token: $("token").value.trim(), peer: this.#ownFingerprint,
    });
    const copied = await copy($("invite"), `${location.origin}${location.pathname}#${given}`);
    $("told").textContent = copied
      ? "Whoever opens this link takes the other place of the session, and accepts only this browser there."
      : "";
  }
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    button.textContent = "Copying is not allowed here";
    return false;
  }
  const label = button.dataset.label ?? button.textContent;
  button.dataset.label = label;
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = label;
  }, 2000);
  return true;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function told(error) {
  return `${capital(error.message)}.`;
}

/** Whether an error is one of those that a session may end with. */
function known(error) {
  return error instanceof Closed || ["PeerRefused", "WireError", "NoiseError", "TransferBroken"].includes(error.constructor.name);
}

function ignored() {} // whoever reads from the connection is told how it ended

const why = await lacking();
if (why) {
  $("lacks").textContent = why;
} else {
  await new Console().begin();
  $("lacking").remove();
  $("page").hidden = false;
}
