"use strict";
// Galleries: boxes over pictures, drawn again for each threshold and choice. Text only ever becomes text nodes.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const KINDS = {
    right: "right",
    Cls: "wrong class",
    Loc: "badly placed",
    Both: "wrong class and badly placed",
    Dupe: "detected twice",
    Bkg: "background",
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
  const count = (number, thing) => `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : thing.endsWith("x") ? "es" : "s"}`;
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
      truths: image.truths.map(([x1, y1, x2, y2, label, kind, scores]) => ({ box: [x1, y1, x2, y2], label, kind, scores, counted: kind === "" })),
      detections: image.detections.map(([x1, y1, x2, y2, label, score, kind, run]) => ({ box: [x1, y1, x2, y2], label, score, kind, run, wrong: kind !== "right" && kind !== "" })),
    }));

    // ------------------------------------------------------------------------------------------------ choices
    const state = { threshold: data.threshold, classes: new Set(), truth: true, detections: true, mistakes: false, defects: false, run: null, sort: "data", search: "" };
    const present = new Map();
    for (const image of images) {
      for (const mark of image.truths) present.set(mark.label, (present.get(mark.label) ?? 0) + 1);
      for (const mark of image.detections) if (!present.has(mark.label)) present.set(mark.label, 0);
    }
    const labels = [...present.keys()].sort((a, b) => a - b);
    labels.forEach((label) => state.classes.add(label));
    const every = () => state.classes.size === labels.length;
    const shownRuns = () => (state.run === null ? runs : [state.run]);

    const isMissed = (truth, run) => data.predictions && truth.counted && !(truth.scores[run] !== null && truth.scores[run] >= state.threshold);
    // The part of an image that is drawn for a run, under the current choices.
    const visible = (image, run) => {
      const truths = image.truths.filter((mark) => state.classes.has(mark.label));
      const detections = image.detections.filter((mark) => mark.run === run && mark.score >= state.threshold && state.classes.has(mark.label));
      const missed = truths.filter((mark) => isMissed(mark, run));
      return {
        truths: !state.truth ? [] : state.mistakes ? missed : truths,
        detections: !state.detections ? [] : state.mistakes ? detections.filter((mark) => mark.wrong) : detections,
        right: detections.filter((mark) => mark.kind === "right").length,
        wrong: detections.filter((mark) => mark.wrong).length,
        missed: missed.length,
        confident: Math.max(-Infinity, ...detections.filter((mark) => mark.wrong).map((mark) => mark.score)),
        boxes: truths.length + detections.length,
      };
    };

    // ------------------------------------------------------------------------------------------------ drawing
    // `unit` is one pixel of the screen in pixels of the image.
    const shape = (mark, what, unit) => {
      const [x1, y1, x2, y2] = mark.box;
      const group = drawn("g", { class: what });
      group.style.setProperty("--c", data.classes[mark.label].colour);
      const place = { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.max(Math.abs(x2 - x1), unit), height: Math.max(Math.abs(y2 - y1), unit) };
      const kind = what.startsWith("detection") ? "" : mark.counted ? (what.includes("missed") ? " missed" : " truth") : " special";
      group.append(drawn("rect", { class: "halo", ...place }), drawn("rect", { class: `line${kind}`, ...place }));
      if (mark.wrong) {
        const side = BADGE * unit;
        const left = place.x, top = place.y;
        group.append(drawn("rect", { class: "badge", x: left, y: top, width: side, height: side }));
        const inner = 3 * unit, far = side - inner;
        group.append(drawn("path", { class: "cross-mark", d: `M${left + inner} ${top + inner}L${left + far} ${top + far}M${left + far} ${top + inner}L${left + inner} ${top + far}` }));
      }
      const title = drawn("title", {});
      title.textContent = words(mark);
      group.append(title);
      return group;
    };
    const words = (mark) => {
      const name = data.classes[mark.label].name;
      return mark.score === undefined ? `truth: ${name}${mark.kind ? ` (${mark.kind})` : ""}` : `${name} ${figure(mark.score)}: ${KINDS[mark.kind]}`;
    };
    const BADGE = 11; // side of a wrong box's cross, in pixels of the screen
    const CROWDED = 0.12; // names hide no more of a picture than this
    // Names in the large picture, of predictions and of truth that was missed. The surest choose
    // their place first; where none is free, or too much would be hidden, the name is left to the list below.
    const label = (svg, image, run, view, unit) => {
      const taken = view.detections.filter((mark) => mark.wrong).map((mark) => ({ x: mark.box[0], y: mark.box[1], width: BADGE * unit, height: BADGE * unit }));
      const asked = [...view.truths, ...view.detections]
        .map((mark, place) => ({ mark, place }))
        .filter(({ mark }) => mark.score !== undefined || !data.predictions || isMissed(mark, run))
        .sort((a, b) => (b.mark.score ?? 1) - (a.mark.score ?? 1));
      let left = CROWDED * image.w * image.h;
      for (const { mark, place } of asked) {
        const { name, colour } = data.classes[mark.label];
        const short = name.length > 28 ? `${name.slice(0, 27)}…` : name;
        const text = drawn("text", { class: "chip-text", "data-box": place, style: `font-size: ${12 * unit}px; fill: ${inkOn(colour)}` });
        // Isolated, so that a name that is written from right to left leaves the score where it is.
        text.textContent = `\u2068${short}\u2069${mark.score === undefined ? "" : ` ${mark.score.toFixed(2)}`}`;
        svg.append(text); // only there its length is known
        const [width, height] = [text.getComputedTextLength() + 8 * unit, 16 * unit];
        const [x1, y1, x2, y2] = mark.box;
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
    const paint = (svg, image, run, view, unit) => {
      svg.replaceChildren(
        ...view.truths.map((mark) => shape(mark, isMissed(mark, run) ? "truth missed" : "truth", unit)),
        ...view.detections.map((mark) => shape(mark, mark.wrong ? "detection wrong" : mark.kind === "right" ? "detection right" : "detection", unit)),
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
        const view = runs.map((run) => (shownRuns().includes(run) ? visible(image, run) : null));
        const on = view.filter(Boolean);
        const total = (key) => on.reduce((sum, view) => sum + view[key], 0);
        const mistakes = total("wrong") + total("missed");
        const keep =
          image.name.toLowerCase().includes(state.search) &&
          (every() || on.some((view) => view.boxes)) &&
          (!state.mistakes || mistakes > 0) &&
          (!state.defects || image.defects.length > 0);
        card.shown = keep;
        const worth = 2 * total("right") + mistakes;
        card.f1 = worth ? (2 * total("right")) / worth : 2;
        card.confident = Math.max(...on.map((view) => view.confident));
        card.missed = total("missed");
        card.boxes = image.truths.filter((mark) => state.classes.has(mark.label)).length;
        card.small = Math.min(Infinity, ...image.truths.filter((mark) => state.classes.has(mark.label)).map(({ box }) => (box[2] - box[0]) * (box[3] - box[1])));
        card.card.hidden = !keep;
        card.svgs.forEach(({ holder, svg }, run) => {
          holder.hidden = view[run] === null;
          holder.style.display = view[run] === null ? "none" : "";
          if (!keep || view[run] === null) return svg.replaceChildren();
          paint(svg, image, run, view[run], Math.max(image.w, image.h) / 240);
          sums.drawn += view[run].truths.length + view[run].detections.length;
          for (const key of ["right", "wrong", "missed"]) { sums[key] += view[run][key]; perRun[run][key] += view[run][key]; }
        });
        if (!keep) continue;
        sums.images += 1;
        sums.defects += image.defects.length > 0;
        card.line.textContent = data.predictions
          ? shownRuns().map((run) => `${runs.length > 1 ? `${data.runs[run]}: ` : ""}${view[run].right} right, ${view[run].wrong} wrong, ${view[run].missed} missed`).join(" · ")
          : `${count(card.boxes, "box")} · ${image.src || image.w > 1 ? `${image.w}×${image.h}` : "size not known"}`;
      }
      const key = KEYS[state.sort];
      const sorted = [...cards].sort((a, b) => { const [x, y] = [key(a), key(b)]; return (x < y ? -1 : x > y ? 1 : 0) || a.image.place - b.image.place; });
      if (sorted.some((card, place) => grid.children[place] !== card.item)) grid.append(...sorted.map((card) => card.item));
      order = sorted.filter((card) => card.shown).map((card) => card.image.place);
      grid.classList.toggle("pairs", shownRuns().length > 1);
      find(".nothing").hidden = order.length > 0;
      const parts = [count(sums.images, "image"), `${count(sums.drawn, "box")} drawn`];
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
      const scores = images.flatMap((image) => image.detections.map((mark) => mark.score));
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
    bind(".show-detections", "change", (target) => { state.detections = target.checked; });
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
    const rowOf = (mark, run, group) => {
      const row = element("tr", mark.wrong || isMissed(mark, run) ? "mistake" : "");
      const name = element("td", "left");
      const key = element("span", "key");
      key.style.setProperty("--c", data.classes[mark.label].colour);
      name.append(key, data.classes[mark.label].name);
      const truth = mark.score === undefined;
      const became = !truth ? KINDS[mark.kind] : mark.kind ? `${mark.kind}, need not be found` : !data.predictions ? "" : isMissed(mark, run) ? "missed" : `found with score ${figure(mark.scores[run])}`;
      const which = runs.length > 1 && data.predictions ? `${data.runs[run]}: ` : "";
      const [x1, y1, x2, y2] = mark.box;
      row.append(
        element("td", "", truth ? "truth" : "prediction"),
        name,
        element("td", "", `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)}`),
        element("td", "judged", truth ? "–" : figure(mark.score)),
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
        const view = visible(image, run);
        const unit = image.w / Math.max(width, 1);
        paint(svg, image, run, view, unit);
        [...view.truths, ...view.detections].forEach((mark, index) => rows[mark.wrong || isMissed(mark, run) ? 0 : 1].push(rowOf(mark, run, svg.children[index])));
        return { holder, svg, run, view, unit };
      });
      find("dialog .frames").replaceChildren(...frames.map(({ holder }) => holder));
      for (const { run, view, svg, unit } of frames) label(svg, image, run, view, unit);
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

    find(".marks .not-counted").hidden = !images.some((image) => image.truths.some((mark) => !mark.counted));
    update();
  };
  document.querySelectorAll("[data-gallery]").forEach(start);
})();
