#!/bin/sh
# A session, a document, a question about it, and what the model had in view. Needs curl.
# MEGACONTEXT_URL and MEGACONTEXT_API_KEY name the server and its key, if it has any.
set -eu
url="${MEGACONTEXT_URL:-http://127.0.0.1:8000}"
json='Content-Type: application/json'

call() { # METHOD PATH [more of curl's options]
    method=$1 path=$2
    shift 2
    if [ -n "${MEGACONTEXT_API_KEY:-}" ]; then
        set -- -H "Authorization: Bearer $MEGACONTEXT_API_KEY" "$@"
    fi
    curl --silent --show-error --fail-with-body --no-buffer -X "$method" "$url$path" "$@"
}

first_id() { # the first "id" of a JSON answer; with jq at hand: jq -r .id
    sed -n 's/^[^}]*"id": *"\([^"]*\)".*/\1/p' | head -n 1
}

model=$(call GET /v1/models | first_id)
session=$(call POST /v1/sessions -H "$json" -d '{"system": "Answer from the log."}' | first_id)
echo "model $model, session $session"

printf 'Day 1: the keeper wrote that the lamp needs oil every 4711 turns.\n' |
    call POST "/v1/sessions/$session/ingest" -H 'Content-Type: text/plain; charset=utf-8' --data-binary @-
echo

# Streamed, as server-sent events; the last one is [DONE].
call POST /v1/chat/completions -H "$json" -d '{
    "model": "'"$model"'", "session_id": "'"$session"'", "max_tokens": 32, "stream": true,
    "messages": [{"role": "user", "content": "When does the lamp need oil?"}]
}'

call GET "/v1/sessions/$session/focus"
echo
call DELETE "/v1/sessions/$session"
echo
