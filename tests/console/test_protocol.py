"""The console's protocol modules in a real browser: the published vectors, the same answers as Python's."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from playwright.sync_api import Browser, Page

from relay.client import wire
from relay.client.noise import MAX_MESSAGE, TAG, Handshake
from tests.relays import Relay

pytestmark = pytest.mark.system

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "client" / "noise_vectors.json").read_text(encoding="utf-8")
)

MODULES = "/static/relay/console"

HELPERS = """
    const bytes = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
    const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const pair = async (hexed) => {  // WebCrypto takes private keys in PKCS #8 and tells public ones in JWK
        const der = bytes("302e020100300506032b656e04220420" + hexed);
        const key = await crypto.subtle.importKey("pkcs8", der, { name: "X25519" }, true, ["deriveBits"]);
        const { x } = await crypto.subtle.exportKey("jwk", key);
        const raw = atob(x.replaceAll("-", "+").replaceAll("_", "/"));
        return { privateKey: key, publicKey: Uint8Array.from(raw, (c) => c.charCodeAt(0)) };
    };
    const noise = await import("MODULES/noise.js");
    const wire = await import("MODULES/wire.js");
    const failure = async (work) => {
        try { await work(); } catch (error) { return `${error.constructor.name}: ${error.message}`; }
        return "";
    };
    const transports = async () => {
        const prologue = new Uint8Array(3);
        const [one, two] = await Promise.all([true, false].map(async (initiator) =>
            noise.Handshake.begin({ initiator, prologue, staticKey: await noise.generateKeyPair() })));
        await two.read(await one.write());
        await one.read(await two.write());
        await two.read(await one.write());
        return [await one.split(), await two.split()];
    };
    const channels = async () => {
        const [one, two] = (await transports()).map((transport) => new wire.Channel(transport));
        await two.open(await one.seal(wire.READY));
        await one.open(await two.seal(wire.READY));
        return [one, two];
    };
""".replace("MODULES", MODULES)


@pytest.fixture(scope="module")
def page(chromium: Browser, daphne: Relay) -> Iterator[Page]:
    page = chromium.new_page()
    page.goto(f"{daphne.http_url}/console/")
    yield page
    page.close()


def run(page: Page, script: str, given: Any = None) -> Any:
    """What `script` returns in the page, with the helpers above and `given`."""
    return page.evaluate(f"async (given) => {{ {HELPERS} {script} }}", given)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['source']} {len(v['messages'])}")
def test_the_published_vectors_come_out(page: Page, vector: dict[str, Any]) -> None:
    made = run(
        page,
        """
        const side = async (name) => noise.Handshake.begin({
            initiator: name === "init", prologue: bytes(given.prologue),
            staticKey: await pair(given[name + "_static"]), ephemeral: await pair(given[name + "_ephemeral"]),
        });
        const [initiator, responder] = [await side("init"), await side("resp")];
        const made = [];
        let [writer, reader] = [initiator, responder];
        for (const [payload] of given.messages.slice(0, 3)) {
            const message = await writer.write(bytes(payload));
            made.push([hex(await reader.read(message)), hex(message)]);
            [writer, reader] = [reader, writer];
        }
        const [first, second] = [await initiator.split(), await responder.split()];
        // The fourth message is the responder's in some collections, and the initiator's in others.
        let [sender, receiver] = given.source === "noise-go" ? [first, second] : [second, first];
        for (const [payload] of given.messages.slice(3)) {
            const message = await sender.encrypt(bytes(payload));
            made.push([hex(await receiver.decrypt(message)), hex(message)]);
            [sender, receiver] = [receiver, sender];
        }
        return { made, hashes: [first, second].map((side) => hex(side.handshakeHash)),
                 remote: hex(second.remoteStatic) };
        """,
        vector,
    )
    assert made["made"] == vector["messages"]
    assert made["hashes"][0] == made["hashes"][1]
    if vector["handshake_hash"]:
        assert made["hashes"][0] == vector["handshake_hash"]
    static = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["init_static"]))
    assert made["remote"] == static.public_key().public_bytes_raw().hex()


def test_words_fingerprints_and_prologues_are_python_s(page: Page) -> None:
    keys = [bytes([number]) * 32 for number in (0, 1, 7, 255)]
    hellos = [wire.hello() for _ in range(8)]
    made = run(
        page,
        """
        const made = [];
        for (const key of given.keys.map(bytes))
            made.push([await wire.fingerprint(key), await wire.words(key)]);
        const agreed = [];
        for (const ours of given.hellos) for (const theirs of given.hellos) if (ours !== theirs) {
            const { initiator, prologue } = wire.agree("demo", bytes(ours), bytes(theirs));
            agreed.push([initiator, hex(prologue)]);
        }
        return { made, agreed };
        """,
        {"keys": [key.hex() for key in keys], "hellos": [hello.hex() for hello in hellos]},
    )
    assert made["made"] == [[wire.fingerprint(key), wire.words(key)] for key in keys]
    agreed = [wire.agree("demo", one, two) for one in hellos for two in hellos if one != two]
    assert made["agreed"] == [[initiator, prologue.hex()] for initiator, prologue in agreed]


def test_another_protocol_and_our_own_hello_are_refused(page: Page) -> None:
    bad = [b"", wire.VERSION, b"lem-relay/2" + bytes(16), wire.hello() + b"x", wire.hello()[:-1]]
    told = run(
        page,
        """
        const ours = wire.hello();
        const told = [];
        for (const theirs of given.map(bytes).concat([ours])) {
            told.push(await failure(() => wire.agree("demo", ours, theirs)));
        }
        return told;
        """,
        [hello.hex() for hello in bad],
    )
    assert told == [
        *["WireError: the peer does not speak lem-relay/1"] * len(bad),
        "WireError: the peer's hello is our own, reflected",
    ]


def test_records_of_any_length_cross_from_the_browser_to_python_and_its_rekeys_too(page: Page) -> None:
    """The browser and Python with the same keys make the very same bytes, past the first rekey."""
    initiator, responder = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
    ours = Handshake(initiator=True, prologue=b"p", static=initiator, ephemeral=initiator)
    theirs = Handshake(initiator=False, prologue=b"p", static=responder, ephemeral=responder)
    theirs.read(ours.write())
    ours.read(theirs.write())
    theirs.read(ours.write())
    sending, receiving = (wire.Channel(side.split()) for side in (ours, theirs))
    sealed, lengths = [sending.seal(wire.Record.READY)], [0, 1, MAX_MESSAGE - TAG - 1, 200_000]
    sending.open(receiving.seal(wire.Record.READY))
    for number in range(wire.REKEY_MESSAGES + 3):
        sealed.append(sending.seal(wire.Record.LAST, b"%d" % number))
    messages = [bytes([length % 251]) * length for length in lengths]
    sealed += [sending.seal(kind, body) for message in messages for kind, body in wire.parts(message)]
    sealed.append(sending.seal(wire.Record.END))
    made = run(
        page,
        """
        const prologue = new TextEncoder().encode("p");
        const [one, two] = [await pair("01".repeat(32)), await pair("02".repeat(32))];
        const ours = await noise.Handshake.begin(
            { initiator: true, prologue, staticKey: one, ephemeral: one });
        const theirs = await noise.Handshake.begin(
            { initiator: false, prologue, staticKey: two, ephemeral: two });
        await theirs.read(await ours.write());
        await ours.read(await theirs.write());
        await theirs.read(await ours.write());
        const sending = new wire.Channel(await ours.split());
        const receiving = new wire.Channel(await theirs.split());
        const sealed = [sending.seal(wire.READY)];
        await sending.open(await receiving.seal(wire.READY));
        const encoder = new TextEncoder();
        for (let number = 0; number < given.count; number++) {
            sealed.push(sending.seal(wire.LAST, encoder.encode(String(number))));
        }
        for (const length of given.lengths) {
            const message = new Uint8Array(length).fill(length % 251);
            for (const [kind, body] of wire.parts(message)) sealed.push(sending.seal(kind, body));
        }
        sealed.push(sending.seal(wire.END));
        const messages = await Promise.all(sealed);
        const opened = (await Promise.all(messages.map((message) => receiving.open(message))))
            .filter((message) => message !== null);
        return {
            digest: hex(await noise.sha256(...messages)),
            opened: opened.slice(given.count).map((message) => message.length),
            numbers: opened.slice(0, given.count)
                .every((message, number) => new TextDecoder().decode(message) === String(number)),
            ended: receiving.ended,
        };
        """,
        {"count": wire.REKEY_MESSAGES + 3, "lengths": lengths},
    )
    assert made["digest"] == hashlib.sha256(b"".join(sealed)).hexdigest()
    assert made["opened"] == lengths
    assert made["numbers"]
    assert made["ended"]


def test_a_message_that_was_tampered_with_ends_it_and_none_after_it_counts(page: Page) -> None:
    told = run(
        page,
        """
        const told = {};
        const cases = {
            altered: (list) => { list[1][5] ^= 1; },
            repeated: (list) => { list[1] = list[0]; },
            swapped: (list) => { [list[1], list[2]] = [list[2], list[1]]; },
            "left out": (list) => { list.splice(1, 1); },
            short: (list) => { list[1] = list[1].slice(0, 3); },
        };
        for (const [name, harm] of Object.entries(cases)) {
            const [one, two] = await transports();
            const list = [];
            for (let n = 0; n < 4; n++) list.push(await one.encrypt(Uint8Array.of(n)));
            harm(list);
            const all = await Promise.allSettled(list.map((message) => two.decrypt(message)));
            all.push(...await Promise.allSettled([two.encrypt(Uint8Array.of(1))]));
            told[name] = all.map((one) => one.reason?.constructor.name ?? one.value.join());
        }
        return told;
        """,
    )
    for name, outcomes in told.items():
        assert outcomes == ["0", *["NoiseError"] * (len(outcomes) - 1)], name


def test_handshakes_that_are_cut_altered_out_of_turn_or_of_small_order_are_refused(page: Page) -> None:
    told = run(
        page,
        """
        const side = async (initiator) => noise.Handshake.begin(
            { initiator, prologue: new Uint8Array(1), staticKey: await noise.generateKeyPair() });
        const met = async (harm) => {  // the second message as `harm` leaves it
            const [one, two] = [await side(true), await side(false)];
            await two.read(await one.write());
            await one.read(harm(await two.write()));
        };
        const told = {};
        told.cut = [];
        for (const length of [0, 31, 32, 79, 80, 95]) {
            told.cut.push(await failure(() => met((message) => message.slice(0, length))));
        }
        told.altered = [];
        for (const at of [0, 31, 32, 79, 80, 95]) {
            told.altered.push(await failure(() => met((message) => { message[at] ^= 4; return message; })));
        }
        told.turn = await failure(async () => (await side(false)).write());
        told.small = await failure(async () => {
            const two = await side(false);
            await two.read(new Uint8Array(32));
            await two.write();
        });
        told.early = await failure(async () => (await side(true)).split());
        const poisoned = await side(false);
        await failure(() => poisoned.write());
        told.poisoned = await failure(() => poisoned.read(new Uint8Array(32)));
        return told;
        """,
    )
    assert all(text.startswith("NoiseError: ") for text in [*told.pop("cut"), *told.pop("altered")])
    assert told == {
        "turn": "NoiseError: it is not this side's turn to write",
        "small": "NoiseError: the peer's key is not a valid one",
        "early": "NoiseError: the handshake is not complete",
        "poisoned": "NoiseError: this state failed before and is of no more use",
    }


def test_records_out_of_their_order_are_refused(page: Page) -> None:
    told = run(
        page,
        """
        const EMPTY = new Uint8Array(0);
        // What the sender's transport makes of records that a `Channel` would not send.
        const received = async (...records) => {
            const [one, two] = await transports();
            const channel = new wire.Channel(two);
            return failure(async () => {
                for (const record of records) await channel.open(await one.encrypt(Uint8Array.from(record)));
            });
        };
        const large = new Uint8Array(wire.MAX_BODY + 1);
        large[0] = wire.MORE;
        return {
            data_first: await received([2, 65]),
            ready_twice: await received([0], [0]),
            ready_with_a_body: await received([0, 1]),
            unknown: await received([0], [4]),
            empty: await received([]),
            empty_part: await received([0], [1]),
            end_inside_a_message: await received([0], [1, 65], [3]),
            after_the_end: await received([0], [3], [2, 65]),
            too_long: await received([0], ...Array(257).fill(large)),
            fine: await received([0], [2, 65], [1, 65], [2], [3]),
            sent_early: await failure(async () =>
                new wire.Channel((await transports())[0]).seal(wire.LAST, EMPTY)),
            sent_late: await failure(async () => {
                const [one] = await channels();
                await one.seal(wire.END);
                await one.seal(wire.LAST, EMPTY);
            }),
        };
        """,
    )
    assert told.pop("fine") == ""
    assert all(text.startswith("WireError: ") for text in told.values()), told


def test_fingerprints_are_base64_without_padding(page: Page) -> None:
    made = run(page, "return wire.fingerprint(new Uint8Array(32))")
    kind, _, text = made.partition(":")
    assert kind == "SHA256"
    assert len(base64.b64decode(text + "=")) == 32
