"""The smallest cloud server for cloud-sync: Python's standard library, rows in SQLite, files in a folder.

    CLOUD_API_KEY=a-long-secret python3 server.py      # http://127.0.0.1:8080/api; TLS: a proxy before it

CLOUD_ENTITIES names the JSON file with the paths: their key columns, and the columns that ?days=N goes by."""
import contextlib, hashlib, hmac, json, mimetypes, os, pathlib, re, sqlite3, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

KEY = f"Bearer {os.environ['CLOUD_API_KEY']}".encode()
ENTITIES = json.load(open(os.environ.get("CLOUD_ENTITIES", "entities.json")))
DATA = os.environ.get("CLOUD_DATA", "data")
PORT = int(os.environ.get("CLOUD_PORT", "8080"))
URL = os.environ.get("CLOUD_PUBLIC_URL", f"http://127.0.0.1:{PORT}")
LIMIT = 64 << 20  # the longest body, in bytes: it is held in memory

def refuse(status, words):
    return status, json.dumps({"success": False, "error": words})

def store(db, table, text, at):
    """Upserts the rows of the array at `at`, all or none. SQLite cuts the JSON: numbers keep their digits."""
    if not db.execute("select json_valid(?)", [text]).fetchone()[0]:
        return refuse(400, "the body is not JSON")
    columns = ENTITIES[table]["key"]
    key = " || char(31) || ".join(f"json_extract(value, '$.{column}')" for column in columns)
    query = f"select cast(case type when 'object' then {key} end as text), value from json_each(?, ?)"
    rows = db.execute(query, [text, at]).fetchall()
    if any(key is None for key, _ in rows):
        return refuse(422, f"a row lacks a value of its key: {', '.join(columns)}")
    db.executemany(f'insert or replace into "{table}" values (?, ?)', rows)
    return 200, json.dumps({"success": True, "upserted": len(rows)})

def upload(directory, kind, body):
    """Keeps the form's part `file` under a name of its own, so that two files of one name stay two."""
    boundary = re.search(r'boundary="?([^";]+)', kind)
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode()) if boundary else []:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'; name="file"; filename="(?:.*[/\\])?(.*)"', head)
        if name:
            safe = re.sub(r"[^A-Za-z0-9.]+", "_", name[1].decode(errors="replace"))[-80:]
            path = f"{directory}/{hashlib.sha256(content).hexdigest()[:16]}_{safe}"
            os.makedirs(f"{DATA}/files/{directory}", exist_ok=True)
            half = pathlib.Path(f"{DATA}/files/{path}.{threading.get_ident()}")
            half.write_bytes(content)
            half.rename(f"{DATA}/files/{path}")
            return 200, json.dumps({"success": True, "url": f"{URL}/files/{path}", "path": path})
    return refuse(422, "the form has no part `file` with a file name")

def call(db, method, url, headers, body):
    match [method, *url.path.strip("/").split("/")]:
        case ["GET", "files", *path] if re.fullmatch(r"[\w-]+/[0-9a-f]{16}_[\w.]*", "/".join(path), re.ASCII):
            with contextlib.suppress(FileNotFoundError):
                return 200, pathlib.Path(DATA, "files", *path).read_bytes()
        case _ if int(headers.get("Content-Length", 0)) > LIMIT:
            return refuse(413, f"the body is longer than {LIMIT} bytes")
        case _ if not hmac.compare_digest(headers.get("Authorization", "").encode(), KEY):
            return refuse(401, "the key is not known")
        case ["GET", "api", "sync-status"]:
            return 200, '{"status":"ok","message":"ready","last_sync":null,"capabilities":["bulk","delete"]}'
        case ["GET", "api", path] if path in ENTITIES:
            column, days = ENTITIES[path].get("days"), parse_qs(url.query).get("days", [""])[0]
            old = f"julianday(json_extract(row, '$.{column}')) < julianday('now') - {int(days or 0)}"
            where = f"where ({old}) is not true" if column and days else ""
            return 200, f"""[{','.join(row for row, in db.execute(f'select row from "{path}" {where}'))}]"""
        case ["POST", "api", path] if path in ENTITIES:
            return store(db, path, f"[{body.decode()}]", "$")
        case ["POST", "api", "bulk", path] if path in ENTITIES:
            return store(db, path, body.decode(), "$.records")
        case ["DELETE", "api", path, key] if path in ENTITIES:
            key = "\x1f".join(unquote(value) for value in key.split(","))
            if db.execute(f'delete from "{path}" where key = ?', [key]).rowcount:
                return 200, json.dumps({"success": True})
        case ["POST", "api", "upload", directory] if re.fullmatch(r"[\w-]+", directory, re.ASCII):
            return upload(directory, headers.get("Content-Type", ""), body)
    return refuse(404, "there is no such thing")

class Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 1 << 16

    def do_GET(self):
        length, url = int(self.headers.get("Content-Length", 0)), urlsplit(self.path)
        body, self.close_connection = self.rfile.read(min(length, LIMIT)), length > LIMIT
        try:
            with contextlib.closing(sqlite3.connect(f"{DATA}/cloud.db", timeout=30)) as db, db:
                status, answer = call(db, self.command, url, self.headers, body)
        except ValueError as error:
            status, answer = refuse(400, str(error))
        kind = mimetypes.guess_type(url.path)[0] if isinstance(answer, bytes) else "application/json"
        answer = answer if isinstance(answer, bytes) else answer.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    do_POST = do_DELETE = do_GET

os.makedirs(DATA, exist_ok=True)
TABLES = (f'create table if not exists "{path}" (key text primary key, row text);' for path in ENTITIES)
sqlite3.connect(f"{DATA}/cloud.db").executescript("pragma journal_mode = wal;" + "".join(TABLES))
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
