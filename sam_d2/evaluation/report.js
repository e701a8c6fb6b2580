"use strict";
// The gallery's zoom: a click opens the image at full size; arrow keys go on, Escape closes.
const dialog = document.getElementById("zoom");
const tiles = Array.from(document.querySelectorAll("button.tile"));
let current = 0;

function show(index) {
  current = (index + tiles.length) % tiles.length;
  const tile = tiles[current];
  const images = tile.querySelectorAll("img");
  const shown = dialog.querySelectorAll("img");
  images.forEach((image, place) => {
    shown[place].src = image.src;
    shown[place].alt = image.alt;
  });
  dialog.querySelector("p").textContent = tile.getAttribute("data-caption");
  dialog.querySelector(".place").textContent = `${current + 1} of ${tiles.length}`;
}

if (dialog && typeof dialog.showModal === "function") {
  tiles.forEach((tile, index) =>
    tile.addEventListener("click", () => {
      show(index);
      dialog.showModal();
    })
  );
  dialog.querySelector(".previous").addEventListener("click", () => show(current - 1));
  dialog.querySelector(".next").addEventListener("click", () => show(current + 1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => tiles[current].focus());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(current + step);
  });
  dialog.querySelectorAll("img").forEach((image) =>
    image.addEventListener("click", () => dialog.classList.toggle("full"))
  );
}

// A table that goes on beyond its right edge fades out there.
document.querySelectorAll(".scroll").forEach((box) => {
  const mark = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  box.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(box);
  mark();
});
