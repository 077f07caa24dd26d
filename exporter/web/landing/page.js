"use strict";
// Keeps the figures up to date: takes the page again, and patches what differs into what is shown, so that focus,
// scrolling and a selection stay where they are.
(() => {
  const live = document.getElementById("live");
  const main = () => document.getElementById("main");
  let timer, busy = false, updated = new Date();

  const say = (text, ill) => {
    if (live.textContent !== text) live.textContent = text;  // only news are read out
    document.documentElement.classList.toggle("stands", ill);
  };

  const patch = (shown, fresh) => {
    const alike = shown.nodeName === fresh.nodeName && shown.childNodes.length === fresh.childNodes.length;
    if (!alike) return shown.replaceWith(fresh);
    if (!(shown instanceof Element)) {
      if (shown.data !== fresh.data) shown.data = fresh.data;
      return;
    }
    for (const name of shown.getAttributeNames()) if (!fresh.hasAttribute(name)) shown.removeAttribute(name);
    for (const { name, value } of [...fresh.attributes])
      if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
    const parts = [...fresh.childNodes];
    [...shown.childNodes].forEach((part, index) => patch(part, parts[index]));
  };

  const take = (text) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const fresh = page.getElementById("main");
    if (!fresh) throw new Error("it answers with another page");
    if (page.documentElement.dataset.edition !== document.documentElement.dataset.edition) return location.reload();
    const { scrollX, scrollY } = window, focused = document.activeElement?.id;
    patch(main(), document.adoptNode(fresh));
    if (focused && document.activeElement?.id !== focused)
      document.getElementById(focused)?.focus({ preventScroll: true });
    window.scrollTo({ left: scrollX, top: scrollY, behavior: "instant" });
    if (document.title !== page.title) document.title = page.title;
  };

  const ask = async () => {
    try {
      const reply = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(10_000) });
      return [reply.status, await reply.text()];
    } catch {
      throw new Error("no answer");
    }
  };

  const update = async () => {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    try {
      const [status, text] = await ask();
      if (status !== 200) throw new Error(`it answers ${status}`);
      take(text);
      updated = new Date();
      say("Live", false);
    } catch (error) {
      say(`Not updating since ${updated.toTimeString().slice(0, 8)} (${error.message})`, true);
    }
    busy = false;
    wait();
  };

  const wait = () => {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(update, Math.max(Number(main().dataset.every), 1000));
  };

  document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(timer) : update());
  say("Live", false);
  wait();
})();
