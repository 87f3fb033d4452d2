// Builds the page into the Python package: `npm run build`, or `node build.mjs DIR` for elsewhere.
//
// The same sources give the same bytes, so the built files can be committed and CI can compare
// them with a build of its own. Names of assets hold a hash of their bytes: a browser may keep them
// for ever. manifest.json holds a hash of the sources, so that a machine without node notices when
// someone changed them and did not build.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, extname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const WEB = dirname(fileURLToPath(import.meta.url));
const OUTPUT = resolve(process.argv[2] ?? join(WEB, "../src/gemmule/serve/page"));
const SOURCES = ["build.mjs", "icon.svg", "index.html", "package-lock.json", "src"];

/** @param {string | Uint8Array} data */
const sha256 = (data) => createHash("sha256").update(data).digest("hex");

/** Files under `path` in an order that does not depend on the machine.
 * @param {string} path
 * @returns {string[]}
 */
function walk(path) {
  const entries = readdirSync(path, { withFileTypes: true });
  const files = entries.flatMap((e) =>
    e.isDirectory() ? walk(join(path, e.name)) : [join(path, e.name)],
  );
  return files.sort();
}

/** One hash over names and bytes of everything that the built files depend on; tests/serve has the
 * same sum in Python. */
function hashOfSources() {
  const files = SOURCES.flatMap((name) =>
    extname(name) ? [join(WEB, name)] : walk(join(WEB, name)),
  );
  const lines = files.map(
    (file) => `${relative(WEB, file).split(sep).join("/")} ${sha256(readFileSync(file))}\n`,
  );
  return sha256(lines.sort().join(""));
}

/** Licence texts of the packages that are in the bundle.
 * @param {string[]} inputs paths of the bundled files
 */
function licenses(inputs) {
  const names = inputs.flatMap((path) => {
    const match = /.*node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path);
    return match?.[1] ? [match[1]] : [];
  });
  const texts = [...new Set(names)].sort().map((name) => {
    const folder = join(WEB, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const files = readdirSync(folder).filter((file) => /^(licen[cs]e|copying|notice)/i.test(file));
    if (files.length === 0) throw new Error(`no licence text in the package ${name}`);
    const text = files.sort().map((file) => readFileSync(join(folder, file), "utf8").trim());
    return `${name} ${version} (${license})\n${"=".repeat(72)}\n${text.join("\n\n")}\n`;
  });
  return `The chat page of gemmule contains these packages.\n\n${texts.join("\n\n")}`;
}

const result = await build({
  absWorkingDir: WEB,
  entryPoints: ["src/main.js", "src/main.css"],
  outdir: "out", // write is false: only names come of it
  write: false,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  charset: "utf8",
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});

/** @type {Record<string, string | Uint8Array>} */
const files = {};
/** Adds a file whose name holds a hash of its bytes, and returns where the page finds it.
 * @param {string} name
 * @param {Uint8Array} data
 */
function addHashed(name, data) {
  const extension = extname(name);
  const path = `assets/${basename(name, extension)}-${sha256(data).slice(0, 12)}${extension}`;
  files[path] = data;
  return path;
}

let html = readFileSync(join(WEB, "index.html"), "utf8");
const built = result.outputFiles.map((file) => ({ name: basename(file.path), data: file.contents }));
built.push({ name: "icon.svg", data: readFileSync(join(WEB, "icon.svg")) });
for (const { name, data } of built) {
  if (!html.includes(`"${name}"`)) throw new Error(`index.html does not use ${name}`);
  html = html.replaceAll(`"${name}"`, `"${addHashed(name, data)}"`);
}
files["index.html"] = html;
files["assets/licenses.txt"] = licenses(Object.keys(result.metafile.inputs));
files["manifest.json"] =
  JSON.stringify({ sources: hashOfSources(), files: Object.keys(files).sort() }, null, 1) + "\n";

// What an earlier build left; any other folder is not ours to empty.
if (existsSync(join(OUTPUT, "manifest.json"))) rmSync(OUTPUT, { recursive: true });
for (const [path, data] of Object.entries(files)) {
  mkdirSync(dirname(join(OUTPUT, path)), { recursive: true });
  writeFileSync(join(OUTPUT, path), data);
}
