// Pages through the slices of a study. Fetches pictures ahead, a few at a time, and keeps a bounded number.
"use strict";

const viewer = document.getElementById("viewer");
const picture = document.getElementById("slice");

// The result is drawn anew every few seconds, the slices are not: no marks of one analysis beside the word of another.
document.addEventListener("ichnode:shown", () => {
  if (document.getElementById("pictured").dataset.of !== viewer.dataset.of) location.reload();
});

if (picture) {
  const KEPT = 240;
  const AHEAD = 6;
  const count = Number(viewer.dataset.count);
  const slider = document.getElementById("slider");
  const number = document.getElementById("number");
  const contour = document.getElementById("contour");
  const heat = document.getElementById("heat");
  const plot = document.getElementById("plot");
  const cursor = document.getElementById("cursor");
  const images = new Map();
  let index = Number(slider.value);
  let wheel = 0;

  const address = (i) => `/picture/${i}/${viewer.dataset.series}?contour=${contour.checked}&heat=${heat.checked}`;

  function load(i) {
    const at = address(i);
    let image = images.get(at);
    if (!image) {
      image = new Image();
      image.src = at;
      images.set(at, image);
      if (images.size > KEPT) images.delete(images.keys().next().value);
    }
    return image;
  }

  async function show(i) {
    index = Math.min(Math.max(i, 0), count - 1);
    slider.value = String(index);
    number.textContent = String(index + 1);
    document.getElementById("slice-header").href = `/slice-header/${index}/${viewer.dataset.series}`;
    if (cursor) {
      const left = Number(plot.dataset.left);
      const width = plot.viewBox.baseVal.width - left - Number(plot.dataset.right);
      const x = left + (width * (index + 0.5)) / count;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
    const wanted = address(index);
    const image = load(index);
    try {
      await image.decode();
    } catch {
      images.delete(wanted);
    }
    if (address(index) !== wanted) return; // somebody went on meanwhile
    picture.src = wanted;
    picture.alt = `Slice ${index + 1} of ${count}`;
    for (let step = 1; step <= AHEAD; step += 1) {
      if (index + step < count) load(index + step);
      if (index - step >= 0) load(index - step);
    }
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  for (const box of [contour, heat]) box.addEventListener("change", () => show(index));

  picture.addEventListener("wheel", (event) => {
    event.preventDefault();
    wheel += event.deltaY;
    if (Math.abs(wheel) < 30) return;
    show(index + Math.sign(wheel));
    wheel = 0;
  }, { passive: false });

  if (plot) {
    plot.addEventListener("click", (event) => {
      const left = Number(plot.dataset.left);
      const box = plot.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
      const width = plot.viewBox.baseVal.width - left - Number(plot.dataset.right);
      show(Math.floor(((x - left) / width) * count));
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea")) return;
    const steps = { j: 1, ArrowDown: 1, ArrowRight: 1, k: -1, ArrowUp: -1, ArrowLeft: -1 };
    if (event.key in steps) show(index + steps[event.key]);
    else if (event.key === "o" && !contour.disabled) contour.click();
    else if (event.key === "h" && !heat.disabled) heat.click();
    else if (event.key === "i") document.getElementById("slice-header").click();
    else return;
    event.preventDefault();
  });

  show(index);
}
