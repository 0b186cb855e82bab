"""Small chat templates with the marks of published ones, by the models of the format of tool calls.

Each prints a conversation as its model writes and reads it; the words of the published templates are left out.
"""

# ruff: noqa: E501  (templates)

_FRAME = (
    "{{% if tools %}}{teach}{{{{ tools | tojson }}}}{{% endif %}}"
    "{{% for m in messages %}}{{% if m.role == 'tool' %}}<|tool|>{{{{ m.content }}}}{{% else %}}"
    "<|{{{{ m.role }}}}|>{{{{ m.content or '' }}}}{{% if m.tool_calls %}}{calls}{{% endif %}}"
    "{{% endif %}}<|end|>{{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>{start}{{% endif %}}"
)
_EACH = "{% for c in m.tool_calls %}"
_ARGUMENTS = "{{ c.function.arguments | tojson }}"
_ITEMS = "{% for k, v in c.function.arguments | items %}"
_TEXT = "{{ v if v is string else v | tojson }}"
_COMMA = "{{ ', ' if not loop.last }}"
_PYTHON = _ITEMS + "{{ k }}={{ v | tojson if v is string else v }}" + _COMMA + "{% endfor %}"


def frame(calls: str, *, teach: str = "", start: str = "") -> str:
    """Return a template that prints the calls `m.tool_calls` so."""
    return _FRAME.format(calls=calls, teach=teach, start=start)


def _tagged(before: str, begin: str, middle: str, end: str, after: str, between: str = "") -> str:
    loop = f"{_ITEMS}{begin}{{{{ k }}}}{middle}{_TEXT}{end}{{% endfor %}}"
    return f"{_EACH}{before}{loop}{after}{between}{{% endfor %}}"


_NAME = "{{ c.function.name }}"
_LINE = "{{ '\\n' }}"
_BREAK = "{{ '\\n' if not loop.last }}"
_GEMMA = (
    "{{% macro w(v) %}}{{% if v is string %}}{quote}{{{{ v }}}}{quote}{{% elif v is mapping %}}{{{{ '{{' }}}}"
    "{{% for k, x in v | dictsort %}}{{{{ k }}}}:{{{{ w(x) }}}}{{{{ ',' if not loop.last }}}}{{% endfor %}}{{{{ '}}' }}}}"
    "{{% elif v is iterable %}}[{{% for x in v %}}{{{{ w(x) }}}}{{{{ ',' if not loop.last }}}}{{% endfor %}}]"
    "{{% else %}}{{{{ v | tojson }}}}{{% endif %}}{{% endmacro %}}"
)


def _gemma(begin: str, end: str, quote: str) -> str:
    arguments = "{% for k, v in c.function.arguments | dictsort %}{{ k }}:{{ w(v) }}{{ ',' if not loop.last }}{% endfor %}"
    calls = f"{_EACH}{begin}call:{_NAME}{{{{ '{{' }}}}{arguments}{{{{ '}}' }}}}{end}{{% endfor %}}"
    return _GEMMA.format(quote=quote) + frame(calls)


def _json(before: str, middle: str, after: str, *, begin: str = "", between: str = "", end: str = "") -> str:
    call = f"{before}{_NAME}{middle}{_ARGUMENTS}{after}"
    return f"{begin}{_EACH}{call}{{{{ '{between}' if not loop.last }}}}{{% endfor %}}{end}"


def _markup(kind: str, name: str) -> str:
    """Return the text of calls in a kind of markup, in the element `name`."""
    value = "{{ 'true' if v is string else 'false' }}\">" + _TEXT
    element = f'<｜{kind}｜parameter name="{{{{ k }}}}" string="{value}</｜{kind}｜parameter>\n'
    call = f'<｜{kind}｜invoke name="{_NAME}">\n{_ITEMS}{element}{{% endfor %}}</｜{kind}｜invoke>\n'
    return f"<｜{kind}｜{name}>\n{_EACH}{call}{{% endfor %}}</｜{kind}｜{name}>"


TOOL_TEMPLATES = {
    "Mistral Small 3.2": frame(
        f"{_EACH}[TOOL_CALLS]{_NAME}[CALL_ID]{{{{ c.id }}}}[ARGS]{_ARGUMENTS}{{% endfor %}}"
    ),
    "Magistral, Devstral, Ministral 3": frame(_json("[TOOL_CALLS]", "[ARGS]", "")),
    "Qwen3-Coder, Qwen3.5": frame(
        _tagged(
            f"<tool_call>\n<function={_NAME}>\n",
            "<parameter=",
            ">\n",
            "\n</parameter>\n",
            "</function>\n</tool_call>",
            _BREAK,
        )
    ),
    "Seed-OSS": frame(
        _tagged(
            f"<seed:tool_call>\n<function={_NAME}>\n",
            "<parameter=",
            ">",
            "</parameter>\n",
            "</function>\n</seed:tool_call>",
            _BREAK,
        )
    ),
    "GLM-4.5, GLM-4.6, Laguna, Ling 3": frame(
        _tagged(
            f"<tool_call>{_NAME}{_LINE}",
            "<arg_key>",
            "</arg_key>\n<arg_value>",
            "</arg_value>\n",
            "</tool_call>",
            _BREAK,
        )
    ),
    "GLM-4.7, GLM-5": frame(
        _tagged(f"<tool_call>{_NAME}", "<arg_key>", "</arg_key><arg_value>", "</arg_value>", "</tool_call>"),
        teach="<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>",
    ),
    "Hunyuan 3": frame(
        "{% set o = ':opensource' %}{{ '<tool_calls{}>'.format(o) + '\n' }}"
        + _tagged(
            "{{ '<tool_call{}>'.format(o) }}" + _NAME + "{{ '<tool_sep{}>'.format(o) + '\n' }}",
            "{{ '<arg_key{}>'.format(o) }}",
            "{{ '</arg_key{}>'.format(o) + '\n' + '<arg_value{}>'.format(o) }}",
            "{{ '</arg_value{}>'.format(o) + '\n' }}",
            "{{ '</tool_call{}>'.format(o) + '\n' }}",
        )
        + "{{ '</tool_calls{}>'.format(o) }}"
    ),
    "MiniMax-M2": frame(
        "{{ '\\n' }}<minimax:tool_call>\n"
        + _tagged(f'<invoke name="{_NAME}">\n', '<parameter name="', '">', "</parameter>\n", "</invoke>\n")
        + "</minimax:tool_call>"
    ),
    "MiniMax-M1": frame(
        _json(
            '{"name": "',
            '", "arguments": ',
            "}",
            begin="<tool_calls>\n",
            between="\\n",
            end="{{ '\\n' }}</tool_calls>",
        )
    ),
    "LongCat 2601 and later": frame(
        _tagged(
            f"<longcat_tool_call>{_NAME}{_LINE}",
            "<longcat_arg_key>",
            "</longcat_arg_key>\n<longcat_arg_value>",
            "</longcat_arg_value>\n",
            "</longcat_tool_call>",
            _BREAK,
        )
    ),
    "LongCat": frame(
        _json('<longcat_tool_call>\n{"name": "', '", "arguments": ', "}\n</longcat_tool_call>", between="\\n")
    ),
    "Step-3": frame(
        "<｜tool_calls_begin｜>\n"
        + _tagged(
            f'<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{_NAME}">\n',
            '<steptml:parameter name="',
            '">',
            "</steptml:parameter>\n",
            "</steptml:invoke><｜tool_call_end｜>\n",
        )
        + "<｜tool_calls_end｜>"
    ),
    "Jamba": frame(
        _json(
            '{"name": "',
            '", "arguments": ',
            "}",
            begin="<tool_calls>[{{ '\\n    ' }}",
            between=",\\n    ",
            end="{{ '\\n' }}]</tool_calls>",
        )
    ),
    "Hunyuan A13B, Apriel": frame(
        _json(
            '{"name": "', '", "arguments": ', "}", begin="<tool_calls>[", between=", ", end="]</tool_calls>"
        )
    ),
    "Gemma 4": _gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "FunctionGemma": _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "Phi-4-mini": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% if m.role == 'system' and 'tools' in m and m['tools'] is not none %}<|tool|>{{ m['tools'] }}<|/tool|>{% endif %}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "Phi-4-mini with the template of llama.cpp": frame(
        _json('<|tool_call|>{"name": "', '", "arguments": ', "}<|/tool_call|>")
    ),
    "Kimi K2": frame(
        "<|tool_calls_section_begin|>"
        + f"{_EACH}<|tool_call_begin|>{{{{ c.id }}}}<|tool_call_argument_begin|>{_ARGUMENTS}<|tool_call_end|>{{% endfor %}}"
        + "<|tool_calls_section_end|>"
    ),
    "Command R7B, Command A": (
        "{% set ns = namespace(id=0) %}"
        + frame(
            f"<|START_ACTION|>[{{{{ '\\n    ' }}}}{_EACH}"
            '{"tool_call_id": "{{ ns.id }}", "tool_name": "' + _NAME + '", "parameters": ' + _ARGUMENTS + "}"
            "{{ ',\\n    ' if not loop.last }}{% set ns.id = ns.id + 1 %}{% endfor %}{{ '\\n' }}]<|END_ACTION|>"
        )
    ),
    "Command R, Command R+": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{{ tools }}"
        "Write 'Action:' followed by a json-formatted list of actions, for example:\n```json\n[\n    {\n"
        '        "tool_name": title of the tool in the specification,\n'
        '        "parameters": a dict of parameters\n    }\n]```'
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "DeepSeek V3, R1": (
        "{{ tools }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% elif m.tool_calls and m.content is none %}<｜Assistant｜><｜tool▁calls▁begin｜>"
        "{% for c in m.tool_calls %}<｜tool▁call▁begin｜>{{ c.type }}<｜tool▁sep｜>{{ c.function.name }}{{ '\\n' }}```json\n"
        "{{ c.function.arguments + '\\n```' }}<｜tool▁call▁end｜>{{ '\\n' if not loop.last }}{% endfor %}<｜tool▁calls▁end｜>"
        "{% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
        "{% elif m.content is not none %}<｜Assistant｜>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
    ),
    "DeepSeek V3.1": (
        "{{ tools }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% elif m.tool_calls %}<｜Assistant｜></think>{{ m.content or '' }}<｜tool▁calls▁begin｜>"
        "{% for c in m.tool_calls %}<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ '' + c.function.arguments }}"
        "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"
        "{% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
        "{% else %}<｜Assistant｜></think>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜></think>{% endif %}"
    ),
    "DeepSeek V3.2": frame(_markup("DSML", "function_calls")),
    "DeepSeek V4": frame(_markup("DSML", "tool_calls")),
    "GigaChat 3.5": frame(_markup("GCML", "tool_calls")),
    "MiniCPM3": frame(
        "<|tool_call_start|>\n```python\n"
        + f"{_EACH}{_NAME}({_ITEMS}{{{{ k }}}}={{{{ v | tojson }}}}{{{{ ',' if not loop.last }}}}{{% endfor %}}){_LINE}{{% endfor %}}"
        + "```\n<|tool_call_end|>"
    ),
    "LFM2": frame(f"<|tool_call_start|>[{_EACH}{_NAME}({_PYTHON}){_COMMA}{{% endfor %}}]<|tool_call_end|>"),
    "Olmo 3": frame(f"<function_calls>\n{_EACH}{_NAME}({_PYTHON}){_LINE}{{% endfor %}}</function_calls>"),
    "Nemotron Nano, Llama Nemotron": frame(
        _json('{"name": "', '", "arguments": ', "}", begin="<TOOLCALL>[", between=", ", end="]</TOOLCALL>")
    ),
    "Apertus": frame(
        _json('{"', '": ', "}", begin="<|tools_prefix|>[", between=", ", end="]<|tools_suffix|>")
    ),
    "InternLM2": frame(
        _json('<|action_start|><|plugin|>\n{"name": "', '", "parameters": ', "}<|action_end|>", between="\\n")
    ),
    "Functionary 3.1": frame(_json("<function=", ">", "</function>")),
    "Functionary 3.2": (
        "{{ tools | tojson if tools }}{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role == 'assistant' %}{% if m.content %}>>>all{{ '\n' + m.content }}{% endif %}"
        f"{_EACH}>>>{{{{ c.function.name + '\n' + c.function.arguments }}}}{{% endfor %}}"
        "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>>>>{% endif %}"
    ),
    "xLAM": frame(
        _json('{"name": "', '", "arguments": ', "}", begin="[", between=", ", end="]"),
        teach='Calls are a JSON array: [{{ \'{"name": "tool_call_name", "arguments": {"arg1": "value1"}}\' }}]',
    ),
    "Firefunction 2": frame(
        " functools["
        + _EACH
        + '{"name": "'
        + _NAME
        + '", "arguments": {{ c.function.arguments + "}" }}{{ ", " if not loop.last }}{% endfor %}]'
    ).replace(
        "{% if tools %}{{ tools | tojson }}{% endif %}",
        "{{ 'Functions: ' + functions + ' Now: ' + datetime }}",
    ),
    "GigaChat 3.1": frame(_json('<|function_call|>{"name": "', '", "arguments": ', "}", between="\\n")),
    "GigaChat 3": (
        "{% for m in messages %}{{ ('function result' if m.role == 'tool' else m.role) + '<|role_sep|>\n' + (m.content or '') + '<|message_sep|>\n\n' }}"
        "{% for c in (m.tool_calls or [])[:1] %}{{ 'function call' + '<|role_sep|>\n' }}"
        '{"name": "' + _NAME + '", "arguments": ' + _ARGUMENTS + "}"
        "{{ '<|message_sep|>\n\n' }}{% endfor %}{% endfor %}{{ tools | tojson if tools }}"
        "{{ 'assistant<|role_sep|>\n' if add_generation_prompt }}"
    ),
    "Solar Open": (
        "{% for m in messages %}{% if m.role == 'tool' %}<|begin|>tool<|tool_response:begin|>{{ m.tool_call_id }}<|tool_response:result|>{{ m.content }}<|end|>"
        "{% elif m.tool_calls %}<|begin|>assistant<|tool_calls|>"
        f"{_EACH}{{{{ '<|tool_call:begin|>' + c.id + '<|tool_call:name|>' + c.function.name }}}}<|tool_call:args|>{_ARGUMENTS}<|tool_call:end|>{{% endfor %}}<|calls|>"
        "{% else %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>{% endif %}{% endfor %}{{ tools | tojson if tools }}"
        "{% if add_generation_prompt %}<|begin|>assistant{% endif %}{% if thinks %}<|begin|>assistant<|think|>{% endif %}"
    ),
    "GLM-4-0414": (
        "{% if tools %}<|system|># 可用工具{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}<|observation|>\n{{ m.content }}{% elif m.tool_calls %}"
        "{% if m.content %}<|assistant|>\n{{ m.content }}{% endif %}"
        "{% for c in m.tool_calls %}<|assistant|>{{ c.function.name + '\\n' }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "Llama 3.2, Llama 4, Gemma 3 and ToolACE with pythonic templates": frame(
        f"[{_EACH}{_NAME}({_PYTHON}){_COMMA}{{% endfor %}}]",
        teach="Call [func_name1(param1=value1, param2=value2), func_name2(param)]",
    ),
}
