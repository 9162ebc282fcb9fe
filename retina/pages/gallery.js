"use strict";
// Galleries: boxes over pictures, drawn anew for each threshold and choice. Text only ever becomes text nodes.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const KINDS = {
    right: "right",
    Cls: "wrong class",
    Loc: "badly placed",
    Both: "wrong class and badly placed",
    Dupe: "a second time",
    Bkg: "nothing there",
    "": "not counted",
  };
  const element = (name, className = "", text = "") => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  };
  const drawn = (name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const told = (number, thing) => `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : thing.endsWith("x") ? "es" : "s"}`;
  const clamped = (value, low, high) => Math.min(Math.max(value, low), high);
  const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
  // Black or white, whichever has the higher contrast ratio (WCAG 2.2) on a colour #rrggbb.
  const inkOn = (colour) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
  };
  const common = (a, b) => Math.max(0, Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x)) * Math.max(0, Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y));
  // Scores and thresholds have at most six places.
  const figure = (score) => Number(score.toFixed(3)).toString();

  const start = (root) => {
    const data = JSON.parse(document.getElementById(root.dataset.gallery).textContent);
    const find = (selector) => root.querySelector(selector);
    const runs = data.runs.map((_, run) => run);
    const images = data.images.map((image, place) => ({
      ...image,
      place,
      truths: image.truths.map(([x1, y1, x2, y2, label, kind, found]) => ({ box: [x1, y1, x2, y2], label, kind, found, counted: kind === "" })),
      found: image.found.map(([x1, y1, x2, y2, label, score, kind, run]) => ({ box: [x1, y1, x2, y2], label, score, kind, run, wrong: kind !== "right" && kind !== "" })),
    }));

    // ------------------------------------------------------------------------------------------------ choices
    const state = { threshold: data.threshold, classes: new Set(), truth: true, found: true, mistakes: false, defects: false, run: null, sort: "data", search: "" };
    const present = new Map();
    for (const image of images) {
      for (const one of image.truths) present.set(one.label, (present.get(one.label) ?? 0) + 1);
      for (const one of image.found) if (!present.has(one.label)) present.set(one.label, 0);
    }
    const labels = [...present.keys()].sort((a, b) => a - b);
    labels.forEach((label) => state.classes.add(label));
    const every = () => state.classes.size === labels.length;
    const shownRuns = () => (state.run === null ? runs : [state.run]);

    const isMissed = (truth, run) => data.predictions && truth.counted && !(truth.found[run] !== null && truth.found[run] >= state.threshold);
    // What of an image is drawn for one run, under the present choices.
    const visible = (image, run) => {
      const truths = image.truths.filter((one) => state.classes.has(one.label));
      const found = image.found.filter((one) => one.run === run && one.score >= state.threshold && state.classes.has(one.label));
      const missed = truths.filter((one) => isMissed(one, run));
      return {
        truths: !state.truth ? [] : state.mistakes ? missed : truths,
        found: !state.found ? [] : state.mistakes ? found.filter((one) => one.wrong) : found,
        right: found.filter((one) => one.kind === "right").length,
        wrong: found.filter((one) => one.wrong).length,
        missed: missed.length,
        confident: Math.max(-Infinity, ...found.filter((one) => one.wrong).map((one) => one.score)),
        boxes: truths.length + found.length,
      };
    };

    // ------------------------------------------------------------------------------------------------ drawing
    // `unit` is one pixel of the screen in pixels of the image.
    const shape = (one, what, unit) => {
      const [x1, y1, x2, y2] = one.box;
      const group = drawn("g", { class: what });
      group.style.setProperty("--c", data.classes[one.label].colour);
      const place = { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.max(Math.abs(x2 - x1), unit), height: Math.max(Math.abs(y2 - y1), unit) };
      const kind = what.startsWith("found") ? "" : one.counted ? (what.includes("missed") ? " missed" : " truth") : " special";
      group.append(drawn("rect", { class: "halo", ...place }), drawn("rect", { class: `line${kind}`, ...place }));
      if (one.wrong) {
        const side = BADGE * unit;
        const left = place.x, top = place.y;
        group.append(drawn("rect", { class: "badge", x: left, y: top, width: side, height: side }));
        const inner = 3 * unit, far = side - inner;
        group.append(drawn("path", { class: "cross-mark", d: `M${left + inner} ${top + inner}L${left + far} ${top + far}M${left + far} ${top + inner}L${left + inner} ${top + far}` }));
      }
      const title = drawn("title", {});
      title.textContent = words(one);
      group.append(title);
      return group;
    };
    const words = (one) => {
      const name = data.classes[one.label].name;
      return one.score === undefined ? `truth: ${name}${one.kind ? ` (${one.kind})` : ""}` : `${name} ${figure(one.score)}: ${KINDS[one.kind]}`;
    };
    const BADGE = 11; // side of a wrong box's cross, in pixels of the screen
    const CROWDED = 0.12; // names hide no more of a picture than this
    // Names in the large picture, of what one asks about: predictions, and truth that stands alone. The surest choose
    // their place first; where none is free, or too much would be hidden, the name is left to the list below.
    const label = (svg, image, run, seen, unit) => {
      const taken = seen.found.filter((one) => one.wrong).map((one) => ({ x: one.box[0], y: one.box[1], width: BADGE * unit, height: BADGE * unit }));
      const asked = [...seen.truths, ...seen.found]
        .map((one, place) => ({ one, place }))
        .filter(({ one }) => one.score !== undefined || !data.predictions || isMissed(one, run))
        .sort((a, b) => (b.one.score ?? 1) - (a.one.score ?? 1));
      let left = CROWDED * image.w * image.h;
      for (const { one, place } of asked) {
        const { name, colour } = data.classes[one.label];
        const short = name.length > 28 ? `${name.slice(0, 27)}…` : name;
        const text = drawn("text", { class: "chip-text", "data-box": place, style: `font-size: ${12 * unit}px; fill: ${inkOn(colour)}` });
        // Isolated, so that a name that is written from right to left leaves the score where it is.
        text.textContent = `\u2068${short}\u2069${one.score === undefined ? "" : ` ${one.score.toFixed(2)}`}`;
        svg.append(text); // only there its length is known
        const [width, height] = [text.getComputedTextLength() + 8 * unit, 16 * unit];
        const [x1, y1, x2, y2] = one.box;
        const free = [[x1, y1 - height], [x1, y2], [x2 - width, y1 - height], [x2 - width, y2], [x2, y1], [x1 - width, y1], [x1, y1], [x2 - width, y2 - height]]
          .map(([x, y]) => ({ x: clamped(x, 0, image.w - width), y: clamped(y, 0, image.h - height), width, height }))
          .find((chip) => taken.every((other) => common(chip, other) < 0.05 * width * height));
        if (!free || width > image.w || height > image.h || width * height > left) { text.remove(); continue; }
        taken.push(free);
        left -= width * height;
        text.setAttribute("x", free.x + 4 * unit);
        text.setAttribute("y", free.y + 12 * unit);
        text.before(drawn("rect", { class: "chip", "data-box": place, style: `--c: ${colour}`, rx: 2 * unit, ...free }));
      }
    };
    const paint = (svg, image, run, seen, unit) => {
      svg.replaceChildren(
        ...seen.truths.map((one) => shape(one, isMissed(one, run) ? "truth missed" : "truth", unit)),
        ...seen.found.map((one) => shape(one, one.wrong ? "found wrong" : one.kind === "right" ? "found right" : "found", unit)),
      );
      [...svg.children].forEach((group, place) => { group.dataset.box = place; });
    };
    const frame = (image, run, lazy) => {
      const holder = element("span", "frame");
      holder.style.aspectRatio = `${image.w} / ${image.h}`;
      if (image.src) {
        const picture = element("img");
        if (lazy) picture.loading = "lazy";
        picture.decoding = "async";
        picture.alt = "";
        picture.src = image.src;
        holder.append(picture);
      } else holder.append(element("span", "placeholder", image.reason));
      const svg = drawn("svg", { viewBox: `0 0 ${image.w} ${image.h}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      holder.append(svg);
      if (runs.length > 1) holder.append(element("span", "run-name", data.runs[run]));
      return [holder, svg];
    };

    // -------------------------------------------------------------------------------------------------- cards
    const grid = find(".grid");
    // All cards are about as high as that of the usual image; those of tall images show them smaller.
    const usual = clamped(median(images.map((image) => image.w / image.h)) ?? 1, 0.75, 1.5);
    const cards = images.map((image) => {
      const card = element("button", image.defects.length ? "card defective" : "card");
      card.type = "button";
      card.dataset.row = image.row;
      const frames = element("span", "frames");
      const svgs = runs.map((run) => {
        const [holder, svg] = frame(image, run, true);
        holder.style.width = `${Math.min(100, (100 * image.w) / image.h / usual)}%`;
        frames.append(holder);
        return { holder, svg };
      });
      const caption = element("span", "caption");
      const name = element("b", "", image.name);
      name.title = image.name;
      const line = element("span");
      caption.append(name, line, ...image.defects.map((defect) => element("span", "defect", defect)));
      card.append(frames, caption);
      card.addEventListener("click", () => open(image.place));
      const item = element("div");
      item.setAttribute("role", "listitem");
      item.style.display = "contents";
      item.append(card);
      return { image, card, item, svgs, line };
    });

    let order = [];
    const KEYS = {
      data: () => 0,
      defects: (card) => -card.image.defects.length,
      f1: (card) => card.f1,
      confident: (card) => -card.confident,
      missed: (card) => -card.missed,
      boxes: (card) => -card.boxes,
      small: (card) => card.small,
    };
    const update = () => {
      const sums = { images: 0, drawn: 0, right: 0, wrong: 0, missed: 0, defects: 0 };
      const perRun = runs.map(() => ({ right: 0, wrong: 0, missed: 0 }));
      for (const card of cards) {
        const { image } = card;
        const seen = runs.map((run) => (shownRuns().includes(run) ? visible(image, run) : null));
        const on = seen.filter(Boolean);
        const total = (key) => on.reduce((sum, one) => sum + one[key], 0);
        const mistakes = total("wrong") + total("missed");
        const keep =
          image.name.toLowerCase().includes(state.search) &&
          (every() || on.some((one) => one.boxes)) &&
          (!state.mistakes || mistakes > 0) &&
          (!state.defects || image.defects.length > 0);
        card.kept = keep;
        const worth = 2 * total("right") + mistakes;
        card.f1 = worth ? (2 * total("right")) / worth : 2;
        card.confident = Math.max(...on.map((one) => one.confident));
        card.missed = total("missed");
        card.boxes = image.truths.filter((one) => state.classes.has(one.label)).length;
        card.small = Math.min(Infinity, ...image.truths.filter((one) => state.classes.has(one.label)).map(({ box }) => (box[2] - box[0]) * (box[3] - box[1])));
        card.card.hidden = !keep;
        card.svgs.forEach(({ holder, svg }, run) => {
          holder.hidden = seen[run] === null;
          holder.style.display = seen[run] === null ? "none" : "";
          if (!keep || seen[run] === null) return svg.replaceChildren();
          paint(svg, image, run, seen[run], Math.max(image.w, image.h) / 240);
          sums.drawn += seen[run].truths.length + seen[run].found.length;
          for (const key of ["right", "wrong", "missed"]) { sums[key] += seen[run][key]; perRun[run][key] += seen[run][key]; }
        });
        if (!keep) continue;
        sums.images += 1;
        sums.defects += image.defects.length > 0;
        card.line.textContent = data.predictions
          ? shownRuns().map((run) => `${runs.length > 1 ? `${data.runs[run]}: ` : ""}${seen[run].right} right, ${seen[run].wrong} wrong, ${seen[run].missed} missed`).join(" · ")
          : `${told(card.boxes, "box")} · ${image.src || image.w > 1 ? `${image.w}×${image.h}` : "size not known"}`;
      }
      const key = KEYS[state.sort];
      const sorted = [...cards].sort((a, b) => { const [x, y] = [key(a), key(b)]; return (x < y ? -1 : x > y ? 1 : 0) || a.image.place - b.image.place; });
      if (sorted.some((card, place) => grid.children[place] !== card.item)) grid.append(...sorted.map((card) => card.item));
      order = sorted.filter((card) => card.kept).map((card) => card.image.place);
      grid.classList.toggle("pairs", shownRuns().length > 1);
      find(".nothing").hidden = order.length > 0;
      const parts = [told(sums.images, "image"), `${told(sums.drawn, "box")} drawn`];
      if (data.predictions && runs.length === 1) parts.push(`${sums.right.toLocaleString("en")} right`, `${sums.wrong.toLocaleString("en")} wrong`, `${sums.missed.toLocaleString("en")} missed`);
      else if (data.predictions) for (const run of shownRuns()) parts.push(`${data.runs[run]}: ${perRun[run].right} right, ${perRun[run].wrong} wrong, ${perRun[run].missed} missed`);
      if (find(".only-defects")) parts.push(`${sums.defects.toLocaleString("en")} with defects`);
      const counts = find(".counts");
      counts.textContent = parts.join(" · ");
      Object.assign(counts.dataset, sums);
      find(".chosen").textContent = every() ? "" : `(${state.classes.size} of ${labels.length})`;
    };
    let waiting = false;
    const soon = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; update(); });
    };

    // ------------------------------------------------------------------------------------------------ controls
    find(".controls").addEventListener("submit", (event) => event.preventDefault());
    const bind = (selector, event, change) => find(selector)?.addEventListener(event, ({ target }) => { change(target); soon(); });
    const slider = find(".slider");
    if (slider) {
      const scores = images.flatMap((image) => image.found.map((one) => one.score));
      const low = scores.reduce((a, b) => Math.min(a, b), Math.min(0, data.threshold));
      const high = scores.reduce((a, b) => Math.max(a, b), Math.max(1, data.threshold));
      if (low < 0 || high > 1) Object.assign(slider, { min: low, max: high, step: (high - low) / 100 });
      const set = (value) => { state.threshold = value; find(".value").textContent = figure(value); };
      const reset = () => { slider.value = data.threshold; set(data.threshold); };
      reset();
      slider.addEventListener("input", () => { set(Number(slider.value)); soon(); });
      find(".reset").addEventListener("click", () => { reset(); soon(); });
    }
    bind(".sort", "change", (target) => { state.sort = target.value; });
    bind(".run", "change", (target) => { state.run = target.value === "" ? null : Number(target.value); });
    bind(".search", "input", (target) => { state.search = target.value.trim().toLowerCase(); });
    bind(".show-truth", "change", (target) => { state.truth = target.checked; });
    bind(".show-found", "change", (target) => { state.found = target.checked; });
    bind(".only-mistakes", "change", (target) => { state.mistakes = target.checked; });
    bind(".only-defects", "change", (target) => { state.defects = target.checked; });
    const ticks = labels.map((label) => {
      const line = element("label");
      const tick = element("input");
      tick.type = "checkbox";
      tick.checked = true;
      tick.value = label;
      const key = element("span", "key");
      key.style.setProperty("--c", data.classes[label].colour);
      line.append(tick, key, ` ${data.classes[label].name} `, element("small", "", present.get(label).toLocaleString("en")));
      tick.addEventListener("change", () => { state.classes[tick.checked ? "add" : "delete"](label); soon(); });
      find(".classes .boxes").append(line);
      return tick;
    });
    const tickAll = (on) => { ticks.forEach((tick, place) => { tick.checked = on; state.classes[on ? "add" : "delete"](labels[place]); }); soon(); };
    find(".all").addEventListener("click", () => tickAll(true));
    find(".none").addEventListener("click", () => tickAll(false));

    // ---------------------------------------------------------------------------------------------- large view
    const dialog = find("dialog");
    let at = null;
    const rowOf = (one, run, group) => {
      const row = element("tr", one.wrong || isMissed(one, run) ? "mistake" : "");
      const name = element("td", "left");
      const key = element("span", "key");
      key.style.setProperty("--c", data.classes[one.label].colour);
      name.append(key, data.classes[one.label].name);
      const truth = one.score === undefined;
      const became = !truth ? KINDS[one.kind] : one.kind ? `${one.kind}, need not be found` : !data.predictions ? "" : isMissed(one, run) ? "missed" : `found with score ${figure(one.found[run])}`;
      const which = runs.length > 1 && data.predictions ? `${data.runs[run]}: ` : "";
      const [x1, y1, x2, y2] = one.box;
      row.append(
        element("td", "", truth ? "truth" : "prediction"),
        name,
        element("td", "", `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)}`),
        element("td", "judged", truth ? "–" : figure(one.score)),
        element("td", "left judged", which + became),
      );
      // The pointed-at box alone stays clear, with its name.
      row.addEventListener("pointerenter", () => { for (const other of group.parentNode.children) other.classList.toggle("faint", other.dataset.box !== group.dataset.box); });
      row.addEventListener("pointerleave", () => { for (const other of group.parentNode.children) other.classList.remove("faint"); });
      return row;
    };
    const show = () => {
      const image = images[at];
      const place = order.indexOf(at);
      find("dialog .title").textContent = image.name;
      // Not `disabled`: a button that is pressed to the end would take the focus, and the keys, with it.
      find(".previous").setAttribute("aria-disabled", place <= 0);
      find(".next").setAttribute("aria-disabled", place < 0 || place >= order.length - 1);
      const rows = [[], []];
      const frames = shownRuns().map((run) => {
        const [holder, svg] = frame(image, run, false);
        holder.style.maxWidth = `calc(70vh * ${image.w / image.h})`;
        const width = Math.min(dialog.clientWidth || 800, 0.7 * innerHeight * (image.w / image.h)) / shownRuns().length;
        const seen = visible(image, run);
        const unit = image.w / Math.max(width, 1);
        paint(svg, image, run, seen, unit);
        [...seen.truths, ...seen.found].forEach((one, index) => rows[one.wrong || isMissed(one, run) ? 0 : 1].push(rowOf(one, run, svg.children[index])));
        return { holder, svg, run, seen, unit };
      });
      find("dialog .frames").replaceChildren(...frames.map(({ holder }) => holder));
      for (const { run, seen, svg, unit } of frames) label(svg, image, run, seen, unit);
      find("dialog .defects").replaceChildren(...image.defects.map((defect) => element("li", "", defect)));
      find("dialog tbody").replaceChildren(...rows.flat());
    };
    const open = (place) => { at = place; dialog.showModal(); show(); dialog.scrollTop = 0; };
    const step = (by) => {
      const place = order.indexOf(at) + by;
      if (place < 0 || place >= order.length) return;
      at = order[place];
      show();
    };
    find(".previous").addEventListener("click", () => step(-1));
    find(".next").addEventListener("click", () => step(1));
    find(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); step(by); }
    });
    dialog.addEventListener("close", () => cards[at]?.card.focus());

    find(".marks .not-counted").hidden = !images.some((image) => image.truths.some((one) => !one.counted));
    update();
  };
  document.querySelectorAll("[data-gallery]").forEach(start);
})();
