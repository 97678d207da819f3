<?php
// The smallest cloud server for cloud-sync: PHP with PDO's SQLite, files in a folder.
//
//     CLOUD_API_KEY=a-long-secret php -d display_errors=0 -d post_max_size=0 -d upload_max_filesize=64M \
//         -S 127.0.0.1:8080 server.php               # http://127.0.0.1:8080/api; TLS: a proxy before it
//
// CLOUD_ENTITIES names the JSON file with the paths: their key columns, and the columns that ?days=N goes by.
declare(strict_types=1);

$entities = json_decode(file_get_contents(getenv('CLOUD_ENTITIES') ?: 'entities.json'), true);
$data = getenv('CLOUD_DATA') ?: 'data';
$key = 'Bearer ' . (getenv('CLOUD_API_KEY') ?: throw new Exception('CLOUD_API_KEY is not set'));

function answer(int $status, array|string $body): never {
    http_response_code($status);
    header('Content-Type: application/json');
    exit(is_string($body) ? $body : json_encode($body, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE));
}
function refuse(int $status, string $words): never {
    answer($status, ['success' => false, 'error' => $words]);
}
/** Upserts the rows of the array at $at, all or none. SQLite cuts the JSON: numbers keep all their digits. */
function store(PDO $db, string $table, array $columns, string $text, string $at): never {
    $valid = $db->prepare('select json_valid(?)');
    $valid->execute([$text]);
    if (!$valid->fetchColumn()) {
        refuse(400, 'the body is not JSON');
    }
    $key = implode(' || char(31) || ', array_map(fn($name) => "json_extract(value, '$.$name')", $columns));
    $key = "cast(case type when 'object' then $key end as text)";
    $rows = $db->prepare("select $key, value from json_each(?, ?)");
    $rows->execute([$text, $at]);
    $rows = $rows->fetchAll(PDO::FETCH_NUM);
    $db->beginTransaction();
    $insert = $db->prepare("insert or replace into \"$table\" values (?, ?)");
    foreach ($rows as $row) {
        $row[0] !== null || refuse(422, 'a row lacks a value of its key: ' . implode(', ', $columns));
        $insert->execute($row);
    }
    $db->commit();
    answer(200, ['success' => true, 'upserted' => count($rows)]);
}

/** Keeps the form's part `file` under a name of its own, so that two files of one name stay two. */
function upload(string $folder, string $directory): never {
    $file = $_FILES['file'] ?? ['error' => UPLOAD_ERR_NO_FILE];
    $error = $file['error'];
    $error === UPLOAD_ERR_INI_SIZE && refuse(413, 'the file is over ' . ini_get('upload_max_filesize'));
    $error === UPLOAD_ERR_NO_FILE && refuse(422, 'the form has no part `file` with a file name');
    $error === UPLOAD_ERR_OK || refuse(500, "the file was not kept: PHP's upload error $error");
    $safe = substr(preg_replace('/[^A-Za-z0-9.]+/', '_', $file['name']), -80);
    $path = "$directory/" . substr(hash_file('sha256', $file['tmp_name']), 0, 16) . "_$safe";
    @mkdir("$folder/$directory", 0755, true);
    move_uploaded_file($file['tmp_name'], "$folder/$path") || refuse(500, 'the file cannot be kept');
    $url = getenv('CLOUD_PUBLIC_URL') ?: "http://{$_SERVER['HTTP_HOST']}";
    answer(200, ['success' => true, 'url' => "$url/files/$path", 'path' => $path]);
}

$method = $_SERVER['REQUEST_METHOD'];
$path = trim((string) parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH), '/');
if ($method === 'GET' && preg_match('#^files/([\w-]+/[0-9a-f]{16}_[\w.]*)$#D', $path, $name)) {
    is_file("$data/files/$name[1]") || refuse(404, 'there is no such file');
    header('Content-Type: ' . mime_content_type("$data/files/$name[1]"));
    readfile("$data/files/$name[1]");
    exit;
}
hash_equals($key, $_SERVER['HTTP_AUTHORIZATION'] ?? '') || refuse(401, 'the key is not known');
if ("$method $path" === 'GET api/sync-status') {
    answer(200, '{"status":"ok","message":"ready","last_sync":null,"capabilities":["bulk","delete"]}');
}
if ($method === 'POST' && preg_match('#^api/upload/([\w-]+)$#D', $path, $name)) {
    upload("$data/files", $name[1]);
}
preg_match('#^api/(bulk/)?([\w-]+)(?:/([^/]+))?$#D', $path, $name) && isset($entities[$name[2]])
    || refuse(404, 'there is no such thing');
[, $bulk, $table, $row] = $name + ['', '', '', ''];
['key' => $columns, 'days' => $column] = $entities[$table] + ['days' => null];
@mkdir($data, 0755, true);
$db = new PDO("sqlite:$data/cloud.db", options: [PDO::ATTR_TIMEOUT => 30]);
$db->exec('pragma journal_mode = wal');
$db->exec("create table if not exists \"$table\" (key text primary key, row text not null)");
$body = file_get_contents('php://input');
switch ($method . ($bulk ? ' bulk' : '') . ($row === '' ? '' : ' row')) {
    case 'GET':
        $days = (int) ($_GET['days'] ?? 0);
        $old = "julianday(json_extract(row, '$.$column')) < julianday('now') - $days";
        $where = $column && $days ? "where ($old) is not true" : '';
        $rows = $db->query("select row from \"$table\" $where")->fetchAll(PDO::FETCH_COLUMN);
        answer(200, '[' . implode(',', $rows) . ']');
    case 'POST':
        store($db, $table, $columns, "[$body]", '$');
    case 'POST bulk':
        store($db, $table, $columns, $body, '$.records');
    case 'DELETE row':
        $gone = $db->prepare("delete from \"$table\" where key = ?");
        $gone->execute([implode("\x1f", array_map('rawurldecode', explode(',', $row)))]);
        $gone->rowCount() > 0 || refuse(404, 'there is no such row');
        answer(200, ['success' => true]);
}
refuse(405, 'this cannot be done here');
