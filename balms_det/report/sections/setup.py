"""What the figures were made of: data set, files, configuration and versions."""

from balms_det.report.data import ReportData
from balms_det.report.html import Section, escaped, table


def section(data: ReportData) -> Section:
    cap = "no limit" if data.image_cap is None else str(data.image_cap)
    rows: list[list[object]] = [
        ["annotations", data.annotations],
        ["SHA-256 of the annotations", data.digest],
        ["format", data.format],
        ["images", data.num_images],
        ["objects", int(data.classes.objects.sum())],
        ["classes", len(data.classes.names)],
        ["detections of an image that count", cap],
        ["bootstrap samples", data.bootstrap],
    ]
    rows += [[f"predictions of {run.files.name}", run.files.predictions.name] for run in data.runs]
    rows += [[package, version] for package, version in data.versions.items()]
    body = table(["", ""], rows, left=2)
    for run in data.runs:
        if run.files.configuration:
            body += (
                f"<details><summary>Configuration of {escaped(run.files.name)}</summary>"
                f"<pre>{escaped(run.files.configuration)}</pre></details>"
            )
    return Section("setup", "Data, configuration and versions", body)
