"""A page to try a run with a picture or a text: one file, nothing from elsewhere, all that is shown is text and never markup."""

from __future__ import annotations

import html
import json
from typing import Any

_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style nonce="__NONCE__">
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; background: #fff }
  h1 { font-size: 1.3rem } label { display: block; margin: .8rem 0 .2rem } small { color: #666 }
  textarea, input[type=password] { width: 100%; box-sizing: border-box; font: inherit; padding: .4rem }
  textarea, input[type=password] { border: 1px solid #999; border-radius: 4px }
  button { font: inherit; margin: 1rem 0; padding: .4rem 1.4rem; border: 0; border-radius: 4px; cursor: pointer }
  button { background: #0b5fa5; color: #fff } button:disabled { background: #999 }
  img { max-width: 16rem; max-height: 16rem; display: block; margin: .5rem 0; image-rendering: pixelated }
  #answer { font-size: 1.2rem; min-height: 2rem; overflow-wrap: anywhere } .wrong { color: #a40000 }
  table { border-collapse: collapse } td { padding: .1rem .8rem .1rem 0 }
  td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums }
  meter { width: 12rem; vertical-align: middle }
</style>
<h1>__TITLE__</h1>
<p><small>__ABOUT__</small></p>
<form id="form"><div id="fields"></div><div id="secret"></div><button id="ask">Ask</button></form>
<div id="answer" aria-live="polite"></div>
<table id="scores"></table>
<script nonce="__NONCE__">
"use strict";
const about = __INFO__;
const $ = id => document.getElementById(id);
const make = (tag, text, within) => { const e = document.createElement(tag); e.textContent = text ?? ""; within?.append(e); return e; };
const fields = {};
function field(name, title, element) {
  const label = make("label", title, $("fields")); element.id = "field-" + name; label.htmlFor = element.id;
  $("fields").append(element); fields[name] = element; return element;
}
if (about.reads === "image") {
  const file = field("image", "A picture", document.createElement("input"));
  file.type = "file"; file.accept = "image/*"; file.required = true;
  const shown = make("img", "", $("fields")); shown.alt = ""; shown.hidden = true;
  file.onchange = () => { shown.hidden = !file.files.length; if (file.files.length) shown.src = URL.createObjectURL(file.files[0]); };
} else {
  const names = about.reads === "history" ? ["history"] : about.parts.length ? about.parts : ["text"];
  for (const name of names) {
    const area = field(name, name === "history" ? "A history, one item a line" : name, document.createElement("textarea"));
    area.rows = name === "context" ? 8 : 4; area.required = true;
  }
}
let key = null;
if (about.key) { make("label", "Key", $("secret")); key = make("input", "", $("secret")); key.type = "password"; key.autocomplete = "off"; }
async function input() {
  if (about.reads === "image") {
    const bytes = new Uint8Array(await fields.image.files[0].arrayBuffer()); let text = "";
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return btoa(text);
  }
  if (about.reads === "history") return fields.history.value.split("\\n").map(s => s.trim()).filter(s => s);
  if (about.parts.length) return Object.fromEntries(about.parts.map(name => [name, fields[name].value]));
  return fields.text.value;
}
$("form").onsubmit = async event => {
  event.preventDefault();
  const answer = $("answer"); $("ask").disabled = true; $("scores").replaceChildren(); answer.className = ""; answer.textContent = "…";
  try {
    const headers = {"Content-Type": "application/json"}; if (key) headers["X-API-Key"] = key.value;
    const kind = about.answers.includes("predict") ? "predict" : "features";
    const reply = await fetch(kind, {method: "POST", headers, body: JSON.stringify({input: await input()})});
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    const row = (found.predictions ?? found.features)[0], said = row.prediction ?? row.features;
    if (typeof said === "string" && said.startsWith("data:image/png;base64,")) {
      answer.textContent = ""; const bytes = Uint8Array.from(atob(said.slice(22)), c => c.charCodeAt(0));
      make("img", "", answer).src = URL.createObjectURL(new Blob([bytes], {type: "image/png"}));
    } else {
      answer.textContent = typeof said === "string" ? said : JSON.stringify(said).slice(0, 2000);
      if (row.score != null) answer.textContent += "  " + row.score;
    }
    const shares = row.scores ?? row.shares;
    if (shares && !Array.isArray(shares)) for (const [name, p] of Object.entries(shares).sort((a, b) => b[1] - a[1])) {
      const line = make("tr", "", $("scores")); make("td", name, line); make("td", typeof p === "number" ? p.toFixed(4) : p, line);
      make("meter", "", make("td", "", line)).value = p;
    }
  } catch (e) { answer.className = "wrong"; answer.textContent = e.message; }
  $("ask").disabled = false;
};
</script>
</html>
"""


def page(info: dict[str, Any], key: bool, nonce: str) -> str:
    """The page of a run, whose scripts and styles a browser takes by their nonce. key: whether to ask for one."""
    what = {"reads": info["reads"], "parts": info["parts"], "answers": info["answers"], "key": key}
    told = json.dumps(what).replace("<", "\\u003c")  # so that no name in it can end the script
    title, about = html.escape(str(info["run"])), html.escape(f"{info['model']} · {info['digest']} · give {info['input']}")
    found = {"__TITLE__": title, "__ABOUT__": about, "__NONCE__": nonce, "__INFO__": told}
    text = _HTML
    for name in ("__NONCE__", "__INFO__", "__TITLE__", "__ABOUT__"):
        text = text.replace(name, found[name])
    return text
