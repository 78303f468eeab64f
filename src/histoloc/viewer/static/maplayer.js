// A map over a slide: grey tiles from the server, put together and coloured here.

import { colourise } from "./colours.js";
import { TILE, levelFor, seen } from "./zoom.js";

const KEPT = 384; // tiles, 64 KB each

export class MapLayer {
  /** `address` of the tiles; `map` is {width, height, scale}; `changed` is called when a tile has come. */
  constructor(address, map, changed) {
    Object.assign(this, { address, map, changed });
    this.tiles = new Map(); // by "level/column_row": {width, grey} or null while it is on its way
    this.canvas = document.createElement("canvas");
    this.arrived = 0;
    this.made = "";
  }

  /** Ask for a tile; what is there, or undefined. */
  tile(level, column, row) {
    const name = `${level}/${column}_${row}`;
    const found = this.tiles.get(name);
    if (found === undefined) {
      this.tiles.set(name, null);
      this.fetch(name);
    } else if (found) { // used last
      this.tiles.delete(name);
      this.tiles.set(name, found);
    }
    return found ?? undefined;
  }

  async fetch(name) {
    try {
      const answer = await fetch(`${this.address}/${name}`);
      if (!answer.ok) return; // stays null: it is not asked for again
      const bitmap = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" });
      const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(bitmap, 0, 0);
      const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
      const grey = new Uint8Array(rgba.length / 4);
      for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
      this.tiles.set(name, { width: bitmap.width, height: bitmap.height, grey });
      for (const old of this.tiles.keys()) {
        if (this.tiles.size <= KEPT) break;
        this.tiles.delete(old);
      }
      this.arrived++;
      this.changed();
    } catch {
      this.tiles.delete(name); // the server was away; asked for again when it is next seen
    }
  }

  /**
   * Draw what is seen. `view` is {x, y, scale}: screen position of the slide's corner and screen pixels per pixel
   * of level 0; `table` has 256 colours, `version` changes with it.
   */
  draw(context, view, table, version) {
    const { width, height } = this.map;
    const scale = view.scale * this.map.scale;
    const box = { x0: -view.x / scale, y0: -view.y / scale,
      x1: (context.canvas.width - view.x) / scale, y1: (context.canvas.height - view.y) / scale };
    const level = levelFor(width, height, scale);
    const range = seen(width, height, level, box);
    if (!range) return;
    this.compose(level, range, table, version);
    context.save();
    context.beginPath(); // the last pixel of a coarse level reaches over the map's edge
    context.rect(view.x, view.y, width * scale, height * scale);
    context.clip();
    const size = range.factor * scale;
    context.imageSmoothingEnabled = true;
    context.drawImage(this.canvas, view.x + range.x0 * size, view.y + range.y0 * size,
      (range.x1 - range.x0) * size, (range.y1 - range.y0) * size);
    context.restore();
  }

  /** Put the tiles of a range together and colour them, unless that is what was done last. */
  compose(level, range, table, version) {
    const { x0, y0, x1, y1 } = range;
    const [width, height] = [x1 - x0, y1 - y0];
    const parts = [];
    for (let row = Math.floor(y0 / TILE); row * TILE < y1; row++) {
      for (let column = Math.floor(x0 / TILE); column * TILE < x1; column++) parts.push([column, row, this.tile(level, column, row)]);
    }
    const wanted = [level, x0, y0, x1, y1, version, this.arrived].join();
    if (wanted === this.made) return;
    const grey = new Uint8Array(width * height);
    for (const [column, row, tile] of parts) {
      const area = { left: Math.max(x0, column * TILE), top: Math.max(y0, row * TILE),
        right: Math.min(x1, (column + 1) * TILE), bottom: Math.min(y1, (row + 1) * TILE) };
      const [source, up] = tile ? [tile, 0] : this.coarser(level, column, row);
      if (source) copy(source, up, area, grey, x0, y0, width);
    }
    this.canvas.width = width;
    this.canvas.height = height;
    const image = new ImageData(width, height);
    colourise(grey, table, image.data);
    this.canvas.getContext("2d").putImageData(image, 0, 0);
    this.made = wanted;
  }

  /** The nearest coarser tile that is there, and how many levels coarser. */
  coarser(level, column, row) {
    for (let up = 1; up <= level; up++) {
      const found = this.tiles.get(`${level - up}/${column >> up}_${row >> up}`);
      if (found) return [found, up];
    }
    return [null, 0];
  }
}

/** Copy an area, in pixels of its level, from a tile that is `up` levels coarser. */
export function copy(tile, up, area, grey, x0, y0, width) {
  for (let y = area.top; y < area.bottom; y++) {
    const row = Math.min((y >> up) % TILE, tile.height - 1) * tile.width;
    const to = (y - y0) * width - x0;
    for (let x = area.left; x < area.right; x++) {
      grey[to + x] = tile.grey[row + Math.min((x >> up) % TILE, tile.width - 1)];
    }
  }
}
