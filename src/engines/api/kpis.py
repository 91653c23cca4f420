"""Measurements and readings of KPIs over HTTP; their other calls are those of every definition."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import json_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.kpi_records import KpiReading, Measurement, MeasurementInput

router = Router("kpis")
KPI = "/kpis/{id}"


@router.post(f"{KPI}/measurements", body=MeasurementInput, reply=Measurement, statuses=(201,))
async def add_measurement(call: Call) -> Sendable:
    """Append a measurement to a KPI of the bound surface; it stays as it is."""
    context = await call.context()
    body = await call.body(MeasurementInput)
    added = await call.engines.kpis.measure(context, call.id("id"), body, request=call.request(context))
    return json_reply(added.record, status=201, replayed=added.replayed)


@router.get(f"{KPI}/measurements", query=ListQuery, reply=Page[Measurement])
async def list_measurements(call: Call) -> Sendable:
    """The measurements of a KPI, by position."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.kpis.measurements(context, call.id("id"), window=window))


@router.get(f"{KPI}/reading", reply=KpiReading)
async def read_kpi(call: Call) -> Sendable:
    """What a KPI says of its window, which ends now, and where that lies in its corridor."""
    context = await call.context()
    return json_reply(await call.engines.kpis.reading(context, call.id("id")))
