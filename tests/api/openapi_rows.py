"""Contents of TGI's own OpenAPI document: paths with operation and statuses, schemas with properties."""
# ruff: noqa: E501

OPERATIONS = {
    ("/", "post"): ("compat_generate", "200 422 424 429 500"),
    ("/chat_tokenize", "post"): ("get_chat_tokenize", "200 404"),
    ("/generate", "post"): ("generate", "200 422 424 429 500"),
    ("/generate_stream", "post"): ("generate_stream", "200 422 424 429 500"),
    ("/health", "get"): ("health", "200 503"),
    ("/info", "get"): ("get_model_info", "200"),
    ("/invocations", "post"): ("sagemaker_compatibility", "200 422 424 429 500"),
    ("/metrics", "get"): ("metrics", "200"),
    ("/tokenize", "post"): ("tokenize", "200 404"),
    ("/v1/chat/completions", "post"): ("chat_completions", "200 424 429 500"),
    ("/v1/completions", "post"): ("completions", "200 424 429 500"),
    ("/v1/models", "get"): ("openai_get_model_info", "200 404"),
}

# By name: the properties, with `*` those that are required; without `tool_call_id` in what the model says,
# which TGI does not write.
SCHEMAS = {
    "BestOfSequence": "finish_reason* generated_text* generated_tokens* prefill* seed tokens* top_tokens",
    "ChatCompletion": "choices* created* id* model* system_fingerprint* usage*",
    "ChatCompletionChoice": "delta* finish_reason index* logprobs",
    "ChatCompletionChunk": "choices* created* id* model* system_fingerprint* usage",
    "ChatCompletionComplete": "finish_reason* index* logprobs message*",
    "ChatCompletionDelta": "content role* tool_calls",
    "ChatCompletionLogprob": "logprob* token* top_logprobs*",
    "ChatCompletionLogprobs": "content*",
    "ChatCompletionTopLogprob": "logprob* token*",
    "ChatRequest": "frequency_penalty logit_bias logprobs max_tokens messages* model n presence_penalty response_format seed stop stream stream_options temperature tool_choice tool_prompt tools top_logprobs top_p",
    "ChatTokenizeResponse": "templated_text* tokenize_response*",
    "Chunk": "choices* created* id* model* system_fingerprint*",
    "CompatGenerateRequest": "inputs* parameters stream",
    "Completion": "choices* created* id* model* object* system_fingerprint* usage",
    "CompletionComplete": "finish_reason* index* logprobs text*",
    "CompletionFinal": "choices* created* id* model* system_fingerprint* usage*",
    "CompletionRequest": "frequency_penalty max_tokens model prompt* repetition_penalty seed stop stream suffix temperature top_p",
    "DeltaToolCall": "function* id* index* type*",
    "Details": "best_of_sequences finish_reason* generated_tokens* prefill* seed tokens* top_tokens",
    "ErrorResponse": "error* error_type*",
    "FinishReason": "",
    "Function": "arguments* name",
    "FunctionDefinition": "arguments* description name*",
    "FunctionName": "name*",
    "GenerateParameters": "adapter_id best_of decoder_input_details details do_sample frequency_penalty grammar max_new_tokens repetition_penalty return_full_text seed stop temperature top_k top_n_tokens top_p truncate typical_p watermark",
    "GenerateRequest": "inputs* parameters",
    "GenerateResponse": "details generated_text*",
    "GrammarType": "type* value*",
    "Info": "docker_label max_best_of* max_client_batch_size* max_concurrent_requests* max_input_tokens* max_stop_sequences* max_total_tokens* model_id* model_pipeline_tag model_sha router* sha validation_workers* version*",
    "JsonSchemaConfig": "name schema*",
    "Message": "content name role* tool_calls",
    "MessageBody": "content tool_calls",
    "MessageChunk": "image_url text type*",
    "MessageContent": "",
    "ModelInfo": "created* id* object* owned_by*",
    "OutputMessage": "content role* tool_calls",
    "PrefillToken": "id* logprob* text*",
    "Prompt": "",
    "SagemakerRequest": "frequency_penalty inputs logit_bias logprobs max_tokens messages model n parameters presence_penalty prompt repetition_penalty response_format seed stop stream stream_options suffix temperature tool_choice tool_prompt tools top_logprobs top_p",
    "SagemakerResponse": "choices created details generated_text id model system_fingerprint usage",
    "SagemakerStreamResponse": "choices created details generated_text id index model system_fingerprint token top_tokens usage",
    "SimpleToken": "id* start* stop* text*",
    "StreamDetails": "finish_reason* generated_tokens* input_length* seed",
    "StreamOptions": "include_usage",
    "StreamResponse": "details generated_text index* token* top_tokens",
    "TextMessage": "content* role* tool_call_id",
    "Token": "id* logprob* special* text*",
    "TokenizeResponse": "",
    "Tool": "function* type*",
    "ToolCall": "function* id* type*",
    "ToolCallDelta": "role* tool_calls*",
    "ToolCallMessage": "role* tool_calls*",
    "ToolChoice": "function",
    "Url": "url*",
    "Usage": "completion_tokens* prompt_tokens* total_tokens*",
}

REQUESTS = (
    "ChatRequest CompatGenerateRequest CompletionRequest FunctionDefinition FunctionName GenerateParameters "
    "GenerateRequest GrammarType JsonSchemaConfig Message MessageBody MessageChunk Prompt SagemakerRequest "
    "StreamOptions Tool ToolCall ToolChoice Url"
).split()
"""Those that clients write."""
