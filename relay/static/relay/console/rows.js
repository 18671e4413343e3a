// The list of files on the page: one row for each, with its progress and what can be done with it.

import { readable } from "./files.js";

const DESCRIPTIONS = {
  queued: "waits its turn",
  reading: "computing its SHA-256…",
  offered: "waiting for the peer…",
  checking: "checking its SHA-256…",
};

/** Rows in `list`, an element. `onremove` is called with a received file that somebody wants gone. */
export class FileRows {
  #list;
  #onremove;
  #rows = new WeakMap();

  constructor(list, onremove) {
    this.#list = list;
    this.#onremove = onremove;
  }

  /** Show a file of `Transfers` as it is now. */
  show(item) {
    const row = this.#rows.get(item) ?? this.#added(item);
    const done = item.state === "done";
    row.root.dataset.state = item.state;
    row.bar.value = item.size ? item.at : Number(done);
    row.bar.hidden = ["done", "refused", "failed"].includes(item.state);
    row.state.textContent = described(item);
    if (done && item.blob && row.buttons.children.length === 0) this.#offer(item, row);
  }

  #added(item) {
    const row = { root: element("li"), bar: element("progress"), state: element("p"), buttons: element("div") };
    row.bar.max = item.size || 1;
    row.bar.setAttribute("aria-label", item.name);
    row.state.className = "soft";
    row.buttons.className = "buttons";
    const name = element("bdi", item.name);
    name.className = "name";
    row.root.append(name, row.buttons, row.bar, row.state);
    this.#list.prepend(row.root);
    this.#rows.set(item, row);
    return row;
  }

  #offer(item, { root, buttons }) {
    const link = element("a", "Save");
    link.href = URL.createObjectURL(item.blob);
    link.download = item.name;
    link.setAttribute("aria-label", `Save ${item.name}`);
    const remove = element("button", "Remove");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${item.name}`);
    remove.addEventListener("click", () => {
      URL.revokeObjectURL(link.href);
      root.remove();
      this.#onremove(item);
    });
    buttons.append(link, remove);
  }
}

/** A new element that holds `text`, whatever is in it. */
export function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function described(item) {
  const way = item.file ? "sent" : "received";
  switch (item.state) {
    case "sending":
    case "receiving":
      return `${way} ${readable(item.at)} of ${readable(item.size)}`;
    case "done":
      return `${way}, ${readable(item.size)}, SHA-256 is right`;
    case "refused":
    case "failed":
      return `not ${way}: ${item.why}`;
    default:
      return `${readable(item.size)}, ${DESCRIPTIONS[item.state]}`;
  }
}
