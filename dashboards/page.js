// Draws the figures and runs the trial table. Text from trials reaches the page through textContent only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px), (pointer: coarse)");
  const slim = matchMedia("(max-width: 640px)"); // as in the style sheet
  const config = {
    showSendToCloud: false, plotlyServerURL: "", // the page must offer no way to send its data anywhere
    responsive: true, displaylogo: false, doubleClickDelay: 400,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };
  const webgl = Boolean(document.createElement("canvas").getContext("webgl"));

  // ---- figures ----
  const ZOOMS = new Set(["front", "history"]);
  const current = {};
  const swaps = new Map(Object.entries(data.dark));

  function coloured(value) {
    if (typeof value === "string") return dark.matches ? swaps.get(value) ?? value : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
    }
    return value;
  }

  function put(target, [key, ...rest], value) {
    if (rest.length) put(target[key] ??= {}, rest, value);
    else target[key] = value;
  }

  // A figure wider than its box fades out where it goes on, and a line says so.
  function hint(box) {
    const beyond = box.scrollWidth - box.clientWidth;
    box.previousElementSibling.hidden = beyond < 2;
    box.classList.toggle("more", beyond - box.scrollLeft > 2);
  }

  async function draw(name) {
    const node = document.getElementById("figure-" + name);
    const view = coloured(data.figures[name][current[name] ?? 0]);
    const figure = view.figure;
    if (slim.matches) for (const [path, value] of Object.entries(view.narrow)) put(figure, path.split("."), value);
    node.style.height = figure.layout.height + "px";
    if (!webgl) {
      if (figure.data.some((trace) => trace.type === "parcoords")) {
        node.style.height = "auto";
        node.textContent = "This figure needs WebGL, which this browser does not offer.";
        return;
      }
      for (const trace of figure.data) if (trace.type === "scattergl") trace.type = "scatter";
    }
    if (narrow.matches) {
      figure.layout.dragmode = false; // a finger on the figure scrolls the page
      figure.layout.font.size = 11;
      for (const axis of ["xaxis", "yaxis"]) if (figure.layout[axis]) figure.layout[axis].fixedrange = true;
    }
    await Plotly.react(node, figure.data, figure.layout, { ...config, displayModeBar: narrow.matches || !ZOOMS.has(name) ? false : "hover" });
    hint(node.parentElement);
    if (!node.dataset.drawn) {
      node.dataset.drawn = "yes";
      node.parentElement.addEventListener("scroll", () => hint(node.parentElement), { passive: true });
      new ResizeObserver(() => hint(node.parentElement)).observe(node.parentElement);
      node.on("plotly_click", (event) => {
        const number = event.points?.[0]?.customdata;
        if (name === "front" && Number.isInteger(number)) showTrial(number);
      });
    }
  }

  async function drawAll() {
    for (const name of Object.keys(data.figures)) {
      if (data.figures[name].length) await draw(name);
      await new Promise((resume) => setTimeout(resume)); // lets the page answer between two figures
    }
    document.documentElement.dataset.ready = "yes";
  }

  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      current[button.dataset.panel] = Number(button.dataset.view);
      press(button, button.parentElement);
      draw(button.dataset.panel);
    });
  }

  function press(chosen, group) {
    for (const button of group.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button === chosen));
  }

  // ---- trial table ----
  const rows = data.table.rows;
  const body = document.getElementById("trial-rows");
  const STEP = 50;
  const state = { filter: "", query: "", column: 0, down: false, shown: STEP, open: new Set() };

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function searchable(row) {
    row.text ??= [row.c.map((cell) => cell[1]), row.d.map((pair) => pair.join(" ")), row.e, row.p]
      .flat().join(" ").toLowerCase();
    return row.text;
  }

  function matching() {
    const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = rows.filter((row) =>
      (!state.filter || (state.filter === "front" ? row.f : row.s === state.filter)) &&
      words.every((word) => searchable(row).includes(word)));
    const sign = state.down ? -1 : 1;
    return kept.sort((one, two) => {
      const [a, b] = [one.c[state.column][0], two.c[state.column][0]];
      if (a === b) return one.n - two.n;
      if (a === null) return 1; // what has no value is last in both directions
      if (b === null) return -1;
      return sign * (a < b ? -1 : 1);
    });
  }

  function rowOf(row) {
    const open = state.open.has(row.n);
    const made = element("tr", { class: "row", "data-trial": row.n });
    row.c.forEach(([, text], index) => {
      const cell = element("td", { class: data.table.numeric[index] ? "number" : "word" });
      if (index === 0) {
        cell.append(element("button", { type: "button", "aria-expanded": open, "aria-label": `Trial ${text}, details` }, text));
      } else if (index === 1) {
        cell.append(element("span", { class: `status status-${row.s}` }, text));
        const badges = row.p.length ? row.p : row.f ? ["front"] : [];
        for (const badge of badges) cell.append(element("span", { class: "badge" }, badge));
      } else cell.textContent = text;
      made.append(cell);
    });
    return made;
  }

  function detailOf(row) {
    const inner = element("div", { class: "inner" });
    if (row.e) inner.append(element("p", { class: `reason status-${row.s}` }, row.e));
    const list = element("dl");
    for (const [name, text] of row.d) list.append(element("div", {}, element("dt", {}, name), element("dd", {}, text)));
    inner.append(list);
    if (row.t) inner.append(element("pre", { tabindex: 0 }, row.t));
    const cell = element("td", { colspan: row.c.length }, inner);
    return element("tr", { class: "detail", "data-detail": row.n }, cell);
  }

  function render() {
    const found = matching();
    const shown = found.slice(0, state.shown);
    body.replaceChildren(...shown.flatMap((row) => state.open.has(row.n) ? [rowOf(row), detailOf(row)] : [rowOf(row)]));
    const count = document.getElementById("trial-count");
    count.textContent = found.length
      ? `${shown.length.toLocaleString("en")} of ${found.length.toLocaleString("en")} trials shown. Open a row for everything that was measured.`
      : "No trial matches.";
    const more = document.getElementById("trial-more");
    more.hidden = shown.length === found.length;
    more.textContent = `Show ${Math.min(200, found.length - shown.length)} more`;
    document.querySelectorAll("#trials th").forEach((heading, index) => {
      heading.setAttribute("aria-sort", index !== state.column ? "none" : state.down ? "descending" : "ascending");
    });
  }

  function toggle(number) {
    if (!state.open.delete(number)) state.open.add(number);
    render();
    body.querySelector(`tr[data-trial="${number}"] button`)?.focus({ preventScroll: true });
  }

  function showTrial(number) {
    if (!body) return;
    Object.assign(state, { filter: "", query: "", column: 0, down: false, open: new Set([number]) });
    state.shown = Math.max(STEP, rows.findIndex((row) => row.n === number) + 10);
    document.getElementById("trial-search").value = "";
    press(document.querySelector('[data-filter=""]'), document.querySelector(".filters"));
    render();
    const button = body.querySelector(`tr[data-trial="${number}"] button`);
    button.focus({ preventScroll: true });
    button.scrollIntoView({ block: "center" });
  }

  if (body) {
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr.row");
      if (row && !String(getSelection())) toggle(Number(row.dataset.trial));
    });
    for (const button of document.querySelectorAll("[data-filter]")) {
      button.addEventListener("click", () => {
        state.filter = button.dataset.filter;
        state.shown = STEP;
        press(button, button.parentElement);
        render();
      });
    }
    for (const button of document.querySelectorAll("[data-column]")) {
      button.addEventListener("click", () => {
        const column = Number(button.dataset.column);
        state.down = state.column === column ? !state.down : false;
        state.column = column;
        render();
      });
    }
    let waiting;
    document.getElementById("trial-search").addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        Object.assign(state, { query: event.target.value, shown: STEP });
        render();
      }, 120);
    });
    document.getElementById("trial-more").addEventListener("click", () => {
      state.shown += 200;
      render();
    });
    render();
  }

  // ---- header ----
  for (const button of document.querySelectorAll("button[data-trial].link")) {
    button.addEventListener("click", () => showTrial(Number(button.dataset.trial)));
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // no clipboard here: Ctrl-C does the rest
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  dark.addEventListener("change", drawAll);
  slim.addEventListener("change", drawAll);
  drawAll();
})();
