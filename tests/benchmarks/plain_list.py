"""A plain handler that lists apps: every request queries the database. The baseline of test_list_apps.

Run as `python plain_list.py DATABASE PORT`; it has no authentication.
"""

import re
import sys
from datetime import UTC, datetime

import aiosqlite
from aiohttp import web

SELECT = (
    "SELECT id, name, project_id, server_id, cd_path, app_url, auto_stop_timeout, status, started_at, domain, stop_at,"
    " health, observed_at, last_error FROM apps ORDER BY name"
)
TIMES = {"startedAt", "stopAt", "observedAt"}


def shown(field: str, value: object) -> object:
    if value is None or field not in TIMES:
        return value
    return int(datetime.fromisoformat(str(value)).replace(tzinfo=UTC).timestamp() * 1000)


async def list_apps(_: web.Request) -> web.Response:
    async with aiosqlite.connect(sys.argv[1]) as database, database.execute(SELECT) as cursor:
        fields = [re.sub("_(.)", lambda found: found[1].upper(), column[0]) for column in cursor.description]
        rows = await cursor.fetchall()
    listed = [{field: shown(field, value) for field, value in zip(fields, row, strict=True)} for row in rows]
    return web.json_response(listed)


application = web.Application()
application.router.add_get("/api/apps", list_apps)
web.run_app(application, host="127.0.0.1", port=int(sys.argv[2]), access_log=None, print=None)
