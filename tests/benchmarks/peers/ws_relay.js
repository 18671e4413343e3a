// A bare relay on Node's `ws`, with its optional native masks (bufferutil).
//
// Back-pressure: a leg is paused while its peer has more than HIGH_BYTES unsent, until the write that
// passed the mark is out. Writes of one turn of the event loop go out together (cork).
'use strict';

const { WebSocketServer } = require('ws');

const HIGH_BYTES = 1024 * 1024;
const waiting = new Map();

function forward(leg, peer) {
  const socket = peer._socket; // `ws` offers no cork of its own
  let corked = false;
  leg.on('message', (data, isBinary) => {
    if (peer.readyState !== peer.OPEN) return;
    if (!corked) {
      corked = true;
      socket.cork();
      process.nextTick(() => {
        corked = false;
        socket.uncork();
      });
    }
    if (peer.bufferedAmount < HIGH_BYTES) {
      peer.send(data, { binary: isBinary });
    } else {
      leg.pause();
      peer.send(data, { binary: isBinary }, () => leg.resume());
    }
  });
  leg.on('close', () => peer.close());
}

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: Number(process.argv[2]),
  perMessageDeflate: false,
  maxPayload: 64 * 1024 * 1024,
});

server.on('connection', (leg, request) => {
  leg.on('error', () => leg.terminate());
  const path = request.url;
  const first = waiting.get(path);
  if (first === undefined) {
    const early = [];
    leg.on('message', (data, isBinary) => {
      early.push([data, isBinary]); // kept; nothing more is read until the peer is there
      leg.pause();
    });
    leg.on('close', () => {
      if (waiting.get(path)?.leg === leg) waiting.delete(path);
    });
    waiting.set(path, { leg, early });
  } else {
    waiting.delete(path);
    first.leg.removeAllListeners('message');
    for (const [data, isBinary] of first.early) leg.send(data, { binary: isBinary });
    forward(leg, first.leg);
    forward(first.leg, leg);
    if (first.leg.isPaused) first.leg.resume();
  }
});
