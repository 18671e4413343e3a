// What shows live figures asks for them again every few seconds while somebody looks: the dashboard, and the page
// of a live session. What is open stays open, what has the focus keeps it. When the relay doesn't answer, a line
// says so, and it goes on asking.
"use strict";
for (const root of document.querySelectorAll("[data-refresh]")) {
  const figures = root.querySelector("[data-figures]");
  const notice = root.querySelector("[data-notice]");
  const pause = Number(root.dataset.every) * 1000;

  const show = (html) => {
    const open = [...figures.querySelectorAll("details[open]")].map((details) => details.id);
    const focused = path(document.activeElement);
    figures.innerHTML = html;
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) figures.querySelector(focused)?.focus({ preventScroll: true });
  };

  // A selector for an element in the figures that survives their replacement; none for others.
  const path = (element) => {
    if (!figures.contains(element)) return null;
    if (element.matches("a")) return `a[href="${CSS.escape(element.getAttribute("href"))}"]`;
    if (element.matches("button")) return "button";
    const details = element.closest("details");
    return details && `#${details.id} ${element.matches("summary") ? "summary" : "[tabindex]"}`;
  };

  const refresh = async () => {
    if (!document.hidden) {
      try {
        // A redirect is the way to the login page: not figures.
        const answer = await fetch(root.dataset.refresh, {
          redirect: "manual",
          signal: AbortSignal.timeout(pause),
        });
        if (!answer.ok) throw new Error(String(answer.status));
        show(await answer.text());
        notice.hidden = true;
        if (figures.querySelector("[data-final]")) return location.reload(); // the rest of the page is old
      } catch {
        notice.hidden = false;
      }
    }
    setTimeout(refresh, pause);
  };
  setTimeout(refresh, pause);
}
