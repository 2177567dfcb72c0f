"use strict";
(() => {
  const data = JSON.parse(document.getElementById("timeline-data").textContent);
  const svg = document.getElementById("timeline"), says = document.getElementById("timeline-says");
  const picker = document.getElementById("timeline-round"), hint = says.textContent;
  const LEFT = 110, LANE = data.clients.length > 30 ? 9 : 24, GAP = data.clients.length > 30 ? 2 : 8, TOP = 26;
  // Marks differ in shape, so that black and white tells them apart: a wedge, a cross, a ring, a bar below.
  const SHAPES = [
    (x, _, y) => `M${x - 4} ${y - 3}h8l-4 7z`,
    (x, _, y, lane) => `M${x - 3} ${y + lane / 2 - 3}l6 6m0 -6l-6 6`,
    (x, _, y, lane) => `M${x - 3} ${y + lane / 2}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0`,
    (x, end, y, lane) => `M${x} ${y + lane}h${Math.max(1, end - x)}v2.5h${-Math.max(1, end - x)}z`,
  ];
  let at = 0, from = 0, to = 0, width = 960;
  const human = us => us >= 999500 ? (us / 1e6).toPrecision(3) + " s" : us >= 1000 ? (us / 1e3).toPrecision(3) + " ms" : us + " µs";
  const add = (name, attributes, text) => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    svg.appendChild(made);
    return made;
  };
  const draw = () => {
    const [number, duration, critical, clients] = data.rounds[at];
    width = Math.max(320, svg.clientWidth || 960);
    const scale = (width - LEFT - 8) / (to - from), x = us => LEFT + (Math.min(to, Math.max(from, us)) - from) * scale;
    svg.replaceChildren();
    const height = TOP + clients.length * (LANE + GAP);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = height + "px";
    const rough = (to - from) / Math.max(2, width / 160), power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough);
    for (let us = Math.ceil(from / step) * step; us <= to; us += step) {
      add("line", {class: "axis", x1: x(us), x2: x(us), y1: TOP - 8, y2: height});
      add("text", {x: x(us), y: 12, "text-anchor": "middle"}, us ? human(us) : "0");
    }
    clients.forEach(([arrival, flat, marks], lane) => {
      const y = TOP + lane * (LANE + GAP);
      if (LANE > 12 || lane % 10 === 0) add("text", {x: 0, y: y + LANE / 2 + 4}, data.clients[lane]);
      for (let i = 0; i < flat.length; i += 3) {
        const [part, start, length] = [flat[i], flat[i + 1], flat[i + 2]];
        if (start + length < from || start > to) continue;
        const piece = add("rect", {x: x(start), y, height: LANE, width: Math.max(.4, x(start + length) - x(start)),
          fill: data.parts[part][1]});
        const words = `${data.clients[lane]}: ${data.parts[part][0]} ${human(length)}, from ${human(start)} to ${human(start + length)}` + (arrival >= 0 && lane !== critical && start + length > arrival ? `; slack from ${human(arrival)} on` : "");
        piece.addEventListener("pointerenter", () => { says.textContent = words; });
      }
      if (arrival >= 0 && arrival < duration && lane !== critical && to > arrival)
        add("rect", {class: "slack", x: x(arrival), y, height: LANE, width: x(duration) - x(arrival), "pointer-events": "none"});
      for (let i = 0; i < marks.length; i += 4) {
        const [kind, start, length, count] = marks.slice(i, i + 4), end = start + length;
        if (end < from || start > to) continue;
        const mark = add("path", {class: "mark", d: SHAPES[kind](x(start), x(end), y, LANE)});
        const words = `${data.clients[lane]}: ${data.marks[kind]}${count > 1 ? `, ${count} times` : ""}, `
          + (length ? `from ${human(start)} to ${human(end)}` : `at ${human(start)}`);
        mark.addEventListener("pointerenter", () => { says.textContent = words; });
      }
      if (lane === critical)
        add("rect", {class: "critical", x: x(0), y: y - 1, height: LANE + 2, width: x(duration) - x(0), "pointer-events": "none"});
    });
  };
  const show = index => {
    at = Math.max(0, Math.min(data.rounds.length - 1, index));
    picker.value = at; from = 0; to = Math.max(1, data.rounds[at][1]);
    says.textContent = hint;
    draw();
  };
  const zoom = (factor, centre) => {
    const whole = data.rounds[at][1], middle = centre ?? (from + to) / 2;
    const span = Math.max(10, Math.min(whole, (to - from) * factor));
    from = Math.max(0, Math.min(whole - span, middle - (middle - from) / (to - from) * span));
    to = from + span;
    draw();
  };
  const move = share => {
    const span = to - from, start = Math.max(0, Math.min(data.rounds[at][1] - span, from + share * span));
    from = start; to = start + span;
    draw();
  };
  const present = new Set(data.rounds.flatMap(([,,, clients]) => clients.flatMap(([, flat]) => flat.filter((_, i) => i % 3 === 0))));
  data.parts.forEach(([name, colour], part) => {
    if (!present.has(part)) return;
    const entry = document.createElement("span"), swatch = document.createElement("span");
    swatch.className = "swatch"; swatch.style.background = colour;
    entry.append(swatch, name);
    document.getElementById("timeline-legend").append(entry);
  });
  const marked = new Set(data.rounds.flatMap(([,,, clients]) => clients.flatMap(([,, marks]) => marks.filter((_, i) => i % 4 === 0))));
  data.marks.forEach((name, kind) => {
    if (!marked.has(kind)) return;
    const entry = document.createElement("span"), sign = document.createElementNS(svg.namespaceURI, "svg");
    const path = document.createElementNS(svg.namespaceURI, "path");
    sign.setAttribute("viewBox", "0 0 14 14"); sign.setAttribute("class", "sign"); sign.setAttribute("aria-hidden", "true");
    path.setAttribute("class", "mark"); path.setAttribute("d", SHAPES[kind](7, 11, 4, 7));
    sign.append(path); entry.append(sign, name);
    document.getElementById("timeline-legend").append(entry);
  });
  data.rounds.forEach(([number, duration], index) => picker.add(new Option(`${number} (${human(duration)})`, index)));
  picker.addEventListener("change", () => show(Number(picker.value)));
  const on = (id, act) => document.getElementById(id).addEventListener("click", act);
  on("timeline-before", () => show(at - 1)); on("timeline-after", () => show(at + 1));
  on("timeline-in", () => zoom(.5)); on("timeline-out", () => zoom(2)); on("timeline-all", () => show(at));
  svg.addEventListener("wheel", event => {
    event.preventDefault();
    const x = (event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth * width;
    zoom(event.deltaY > 0 ? 1.25 : .8, from + Math.max(0, x - LEFT) / (width - LEFT - 8) * (to - from));
  }, {passive: false});
  svg.addEventListener("keydown", event => {
    const act = {"+": () => zoom(.5), "-": () => zoom(2), ArrowLeft: () => move(-.2), ArrowRight: () => move(.2),
      PageUp: () => show(at - 1), PageDown: () => show(at + 1)}[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  addEventListener("resize", draw);
  show(Math.min(1, data.rounds.length - 1));
})();
