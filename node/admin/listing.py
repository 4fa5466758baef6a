"""Tables for the terminal. Reads rows that the views gave; asks the database nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from unicodedata import category

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from node.settings import Settings

Row = Mapping[str, Any]
STYLES = {
    **dict.fromkeys(("STAT", "FAILED", "NOT ANALYSED", "UNDELIVERED"), "bold red"),
    **dict.fromkeys(("HIGH", "PENDING", "RECEIVING", "DECIDING", "QUEUED", "DELIVERING"), "yellow"),
    **dict.fromkeys(("WRONG", "LATE", "LOST"), "bold red"),
    **dict.fromkeys(("OK", "RECORDED"), "green"),
    **dict.fromkeys(("RUNNING", "ANALYSED"), "cyan"),
    **dict.fromkeys(("DONE", "COMPOSED", "SENT", "COMMITTED", "ACKNOWLEDGED", "ACCEPTED"), "green"),
    **dict.fromkeys(("SUPERSEDED", "CANCELLED", "SKIPPED"), "dim"),
}


def when(seconds: float | None) -> str:
    """Local time, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S") if seconds else ""


def word(state: str | None) -> Text:
    return Text(state or "", style=STYLES.get(state or "", ""))


def terminal(**options: Any) -> Console:
    """Letters as they are: what comes from a header is no markup, and `:100:` in it no picture."""
    return Console(markup=False, emoji=False, **options)


class _Rows(Table):
    """Cells are text: a header may hold orders to the terminal (ISO 6429), which are shown in its place."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(_shown(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def _shown(text: str) -> str:
    return "".join(f"\\x{ord(c):02x}" if category(c) == "Cc" and c != "\n" else c for c in text)


def _table(*columns: str) -> Table:
    table = _Rows(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def banner(settings: Settings) -> Panel:
    """What runs, where, and where results go."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    scp = settings.scp
    grid.add_row("DICOM", f"{scp.ae_title} at {scp.host}:{scp.port}")
    grid.add_row("Web", f"{settings.web.address}/")
    for d in settings.destination:
        where = d.url or f"{d.ae_title} at {d.host}:{d.port}"
        grid.add_row("Results to", f"{d.name}: {where} ({', '.join(d.outputs)})")
    if not settings.destination:
        text = "nowhere: add a [[destination]] to the settings; until then objects only lie in data_dir"
        grid.add_row("Results to", Text(text, style="bold yellow"))
    for alert in settings.alert:
        grid.add_row("Alerts to", f"{alert.name} ({alert.type}): {alert.when}")
    grid.add_row("Data", str(settings.data_dir.resolve()))
    footer = Text("Ctrl-C stops it. Research use only, not for diagnosis.", style="dim")
    return Panel(Group(grid, footer), title="ichnode is up", expand=False)


def studies_table(rows: Sequence[Row]) -> Table:
    table = _table(
        "received", "patient", "accession", "study / series", "status", "priority", "what became of it"
    )
    for study in rows:
        job = study["job"] or {}
        table.add_row(
            when(study["first_received_at"]),
            study["patient_id"],
            study["accession_number"],
            study["description"] or study["study_instance_uid"],
            word(study["status"]),
            word(job.get("priority")),
            _result(job) + _removed(study),
        )
        for series in study["series"]:
            name = f"  {series['series_number'] or '–'} {series['description']} ({series['instance_count']})"
            table.add_row("", "", "", name, word(series["state"]), "", series["reason_text"] or "")
    return table


def _removed(study: Row) -> str:
    """When retention took the files away."""
    removed_at = study.get("files_removed_at")
    return f" (files removed {when(removed_at)})" if removed_at else ""


def _result(job: Row) -> str:
    findings = job.get("findings")
    if not findings:
        return job.get("reason_text") or ""
    present = [name for name, c in findings["classes"].items() if c["present"]]
    probability = findings["classes"].get("any", {}).get("probability")
    head = ", ".join(present) or "no haemorrhage detected"
    return head if probability is None else f"{head} (any: {probability:.2f})"


def jobs_table(rows: Sequence[Row]) -> Table:
    table = _table(
        "job", "state", "priority", "ordered", "patient", "series", "rev", "tries", "queued", "reason"
    )
    for job in rows:
        table.add_row(
            str(job["id"]),
            word(job["state"]),
            word(job["priority"]),
            job["order_priority"] or "",
            job["patient_id"],
            job["description"] or job["series_instance_uid"],
            str(job["revision"]),
            str(job["attempts"]),
            when(job["created_at"]),
            job["reason_text"] or "",
        )
    return table


def deliveries_table(rows: Sequence[Row]) -> Table:
    table = _table(
        "delivery", "job", "object", "destination", "state", "tries", "sent", "next try", "last error"
    )
    for d in rows:
        table.add_row(
            str(d["id"]),
            str(d["job_id"]),
            f"{d['output']} {d['sop_instance_uid']}",
            d["destination"],
            word(d["state"]),
            str(d["attempts"]),
            when(d["sent_at"]),
            when(d["next_try_at"]) if d["state"] == "PENDING" else "",
            d["last_error"] or "",
        )
    return table


def alerts_table(rows: Sequence[Row]) -> Table:
    table = _table(
        "alert",
        "channel",
        "study",
        "word",
        "priority",
        "state",
        "tries",
        "told after",
        "acknowledged after",
        "answer",
    )
    for a in rows:
        table.add_row(
            str(a["id"]),
            a["channel"],
            a["accession_number"] or a["study_instance_uid"],
            f"{a['number']} {a['stage'].lower().replace('_', ' ')}",
            word(a["priority"]),
            word(a["state"]),
            str(a["attempts"]),
            _after(a, "sent_at"),
            _after(a, "acknowledged_at"),
            a["last_error"] or a["receipt"] or a["last_status"] or "",
        )
    return table


def _after(alert: Row, event: str) -> str:
    """Seconds from the last slice."""
    return f"{alert[event] - alert['last_slice_at']:.1f} s" if alert[event] else ""


def incidents_table(rows: Sequence[Row]) -> Table:
    table = _table("last", "times", "code", "from", "series", "what")
    for i in rows:
        series = i["series_instance_uid"]
        table.add_row(when(i["last_at"]), str(i["times"]), i["code"], i["calling_ae"], series, i["text"])
    return table


def removals_table(rows: Sequence[Row]) -> Table:
    table = _table("removed", "study", "files", "MB", "because of", "")
    for r in rows:
        state = "" if r["finished_at"] else "under way"
        size, count = f"{r['size_bytes'] / 1e6:.1f}", str(r["files"])
        table.add_row(when(r["begun_at"]), r["study_instance_uid"], count, size, r["cause"], state)
    return table


def routing_table(rows: Sequence[Row]) -> Table:
    """What each destination gets of studies already seen, and why."""
    table = _table("study", "findings", "priority", "from", "station", "time", "destination", "gets", "why")
    for row in rows:
        facts = (
            ", ".join(row["findings"]),
            word(row["priority"]),
            ", ".join(row["source_aes"]),
            row["station"],
        )
        study = row["patient_id"] or row["study_instance_uid"]
        for name, given in row["destinations"].items():
            gets = " + ".join(given["send"]) or "nothing"
            table.add_row(study, *facts, row["study_time"] or "", name, gets, given["why"])
    return table


def gaps_table(rows: Sequence[Row]) -> Table:
    """What archives hold and never came here."""
    table = _table(
        "no.", "archive", "what", "patient", "accession", "date", "description", "here", "there", "state", ""
    )
    for g in rows:
        there = "?" if g["expected"] is None else str(g["expected"])
        who = (g["patient_id"], g["accession_number"], g["study_date"], g["description"])
        what = (str(g["id"]), g["archive"], g["kind"])
        table.add_row(*what, *who, str(g["here"]), there, word(g["state"]), g["last_error"] or g["note"])
    return table


def canaries_table(rows: Sequence[Row]) -> Table:
    table = _table("no.", "sent", "came out", "any", "composed after", "model", "what")
    for row in rows:
        outcome, steps = row["outcome"] or {}, row["steps_s"] or {}
        value = outcome.get("probabilities", {}).get("any")
        composed = steps.get("composed")
        table.add_row(
            str(row["id"]),
            when(row["begun_at"]),
            word(row["state"]),
            "" if value is None else f"{value:.3f}",
            "" if composed is None else f"{composed:.1f} s",
            row["model"],
            row["text"],
        )
    return table


def quality_table(rows: Sequence[Row]) -> Table:
    """95 % intervals; sensitivity and NPV as clicked mislead, since few negatives are judged."""
    table = _table("", "analysed", "suspected", "judged", "PPV", "sensitivity (clicked)", "corrected")
    for row in rows:
        judged = f"{row['verified_positive']['count']} + {row['verified_negative']['count']} negative"
        corrected = (row["corrected"] or {}).get("sensitivity")
        table.add_row(
            row["name"],
            str(sum(row["analysed"].values())),
            str(row["analysed"]["suspected"]),
            judged,
            *(_rate(row["any"][name]) for name in ("ppv", "sensitivity")),
            f"{corrected[0]:.2f} ({corrected[1]:.2f}–{corrected[2]:.2f})" if corrected else "–",
        )
    return table


def _rate(rate: Row) -> str:
    return "–" if rate["value"] is None else f"{rate['value']:.2f} ({rate['low']:.2f}–{rate['high']:.2f})"


def shadow_table(found: Row) -> Table:
    """Each class: where the models agree, and who is right by the readers; 95 % intervals."""
    counts = ("both", "active only", "shadow only", "neither")
    accuracy = ("sensitivity, active", "shadow", "specificity, active", "shadow", "right alone: p")
    table = _table("class", *counts, "agreement", "kappa", "judged", *accuracy)
    for name, of in found["classes"].items():
        cross, kappa, mcnemar = of["cross"], of["kappa"], of["mcnemar"]
        value = "–" if kappa["value"] is None else f"{kappa['value']:.2f}"
        within = "" if kappa["low"] is None else f" ({kappa['low']:.2f}–{kappa['high']:.2f})"
        chances = [mcnemar[what]["p_value"] for what in ("sensitivity", "specificity")]
        table.add_row(
            name,
            *(str(cross[key.replace(" ", "_")]) for key in counts),
            _rate(of["agreement"]),
            value + within,
            str(sum(of["active"][key] for key in of["active"] if isinstance(of["active"][key], int))),
            *(_rate(of[who][what]) for what in mcnemar for who in ("active", "shadow")),
            " / ".join("–" if p is None else f"{p:.3f}" for p in chances),
        )
    return table


def promotions_table(rows: Sequence[Row]) -> Table:
    table = _table("when", "model", "in place of", "by", "why")
    for row in rows:
        models = (model_words(row["model"]), model_words(row["before"]))
        table.add_row(when(row["at"]), *models, row["who"], row["reason"])
    return table


def model_words(model: Row) -> str:
    """Name, version and the beginning of the digest."""
    if not model["name"]:
        return "unknown"
    return f"{model['name']} {model['version']} {(model['sha256'] or '')[:12]}"


def drifts_table(rows: Sequence[Row]) -> Table:
    table = _table("drifts", "feature", "was", "is", "since")
    for row in rows:
        since = when(row["drifted_since"])
        table.add_row(row["scanner"], row["feature"], row["before"], row["after"], since)
    return table


def users_table(rows: Sequence[Row]) -> Table:
    table = _table("user", "role", "since")
    for user in rows:
        table.add_row(user["name"], user["role"], when(user["created_at"]))
    return table


def tokens_table(rows: Sequence[Row]) -> Table:
    table = _table("token", "user", "role", "label", "made", "good until", "last used")
    for token in rows:
        times = (when(token[name]) for name in ("created_at", "expires_at", "used_at"))
        table.add_row(str(token["id"]), token["user_name"], token["role"], token["label"], *times)
    return table


def audit_table(rows: Sequence[Row]) -> Table:
    table = _table("no.", "time", "who", "role", "from", "what", "study", "detail")
    for entry in rows:
        who = (entry["who"], entry["role"], entry["address"], entry["action"])
        study = entry["study_instance_uid"] or ""
        table.add_row(str(entry["id"]), when(entry["at"]), *who, study, entry["detail"])
    return table


def doctor_table(rows: Sequence[Row]) -> Table:
    table = _table("check", "", "what was found")
    for check in rows:
        table.add_row(
            check["name"], Text("ok", "green") if check["ok"] else Text("WRONG", "bold red"), check["text"]
        )
    return table
