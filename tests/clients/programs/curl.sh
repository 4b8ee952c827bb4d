#!/bin/sh
# curl, as people type it. Prints one JSON line per operation.
try() {
    name=$1 want=$2
    shift 2
    got=$(curl -sS --max-time 60 "$@" 2>&1)
    case $got in
    *"$want"*) echo "{\"op\": \"$name\", \"ok\": true, \"note\": \"\"}" ;;
    *) echo "{\"op\": \"$name\", \"ok\": false, \"note\": \"no $(echo "$want" | tr -d '\"') in the answer\"}" ;;
    esac
}
B=$WAYBILL_TEST_BASE G=$WAYBILL_TEST_GPT C=$WAYBILL_TEST_CLAUDE
J='content-type: application/json'
M='[{"role":"user","content":"Say hello."}]'
try "chat" chat.completion "$B/v1/chat/completions" -H 'Authorization: Bearer any' -H "$J" -d "{\"model\":\"$G\",\"messages\":$M}"
try "chat stream" '[DONE]' "$B/v1/chat/completions" -H "$J" -d "{\"model\":\"$G\",\"stream\":true,\"messages\":$M}"
try "chat HTTP/1.0" chat.completion -0 "$B/v1/chat/completions" -H "$J" -d "{\"model\":\"$G\",\"messages\":$M}"
try "responses" '"response"' "$B/v1/responses" -H "$J" -d "{\"model\":\"$G\",\"input\":\"Say hello.\"}"
try "responses stream" 'event: response.completed' "$B/v1/responses" -H "$J" -d "{\"model\":\"$G\",\"input\":\"hi\",\"stream\":true}"
try "messages" end_turn "$B/v1/messages" -H 'x-api-key: any' -H 'anthropic-version: 2023-06-01' -H "$J" -d "{\"model\":\"$C\",\"max_tokens\":300,\"messages\":$M}"
try "messages stream" 'event: message_stop' "$B/messages" -H 'x-api-key: any' -H 'anthropic-version: 2023-06-01' -H "$J" -d "{\"model\":\"$C\",\"max_tokens\":300,\"stream\":true,\"messages\":$M}"
try "count_tokens" input_tokens "$B/v1/v1/messages/count_tokens" -H "$J" -d "{\"model\":\"$C\",\"messages\":$M}"
try "models" '"list"' "$B/v1/models"
try "no such path" '"error"' "$B/v1/no/such/path"
