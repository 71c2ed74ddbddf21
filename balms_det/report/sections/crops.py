"""The errors of the worst rare classes, truth beside prediction."""

from balms_det.report.crops import Crop
from balms_det.report.data import ReportData
from balms_det.report.html import Section, escaped, number, paragraph
from balms_det.report.sections.headline import TASK_TITLES


def section(data: ReportData) -> Section | None:
    crops = data.detail.crops
    if crops is None:
        return None
    task = TASK_TITLES[data.task]
    body = paragraph(
        f"The rare classes with the lowest AP of {task}: objects that were missed and detections "
        "that are false positives at IoU 0.5. Left: the annotated objects. Right: the best "
        "detections that count in the image. The error has a thick outline."
    )
    if not crops:
        body += paragraph("No rare class has an error whose image could be read.")
    for of_class in crops:
        name = data.classes.names[of_class.index]
        shown = "".join(_crop(crop) for crop in of_class.crops)
        body += (
            f'<h3>{escaped(name)}: AP {number(of_class.ap)}</h3><div class="crops">{shown}</div>'
        )
    return Section("worst", "Worst rare classes", body)


def _crop(crop: Crop) -> str:
    sides = "".join(
        f'<img alt="{side}" src="data:image/jpeg;base64,{content}">'
        for side, content in (("truth", crop.truth), ("prediction", crop.prediction))
    )
    return (
        f"<figure><div>{sides}</div><figcaption><b>{escaped(crop.kind)}</b>. "
        f"{escaped(crop.caption)}</figcaption></figure>"
    )
