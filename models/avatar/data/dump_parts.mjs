// Writes the drawing parts of the DiceBear style "personas" (CC BY 4.0, Draftbit) as JSON:
// {group: {name: svg}} with the colours as the placeholders @SKIN, @HAIR, @CLOTH.
// Usage: node dump_parts.mjs DIR_WITH_node_modules > parts.json
import { pathToFileURL } from 'node:url';
import { resolve } from 'node:path';

const dir = resolve(process.argv[2], 'node_modules/@dicebear/personas/lib');
const groups = await import(pathToFileURL(`${dir}/components/index.js`));
const { create } = await import(pathToFileURL(`${dir}/index.js`));
const colors = { skin: '@SKIN', hair: '@HAIR', clothing: '@CLOTH' };
const parts = {};
for (const [group, values] of Object.entries(groups)) {
  parts[group] = {};
  for (const [name, draw] of Object.entries(values)) parts[group][name] = draw({}, colors);
}
// the head alone: everything in the body text before the first <g transform
const none = { pick: () => undefined, bool: () => false };
parts.head = { head: create({ prng: none, options: {} }).body.split('<g transform="translate(20 24)">')[0].replaceAll('#undefined', '@SKIN') };
console.log(JSON.stringify(parts, null, 1));
