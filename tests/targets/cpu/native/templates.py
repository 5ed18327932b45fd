"""Chat templates of several kinds, in the manner of those that checkpoints bring."""

# As DeepSeek-V2: what the system says stands first.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# As Qwen2.5: without a system's text there is one of its own.
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek-R1: thoughts of former answers are dropped.
WITHOUT_THOUGHTS = PLAIN.replace(
    "'Assistant: ' + message['content']", "'Assistant: ' + message['content'].split('</think>')[-1]"
)
# As Llama 3.
TRIMMED = PLAIN.replace("message['content']", "(message['content'] | trim)")
# As Gemma: no system.
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + WITH_DEFAULT
DATED = "{{ strftime_now('%Y') }}" + PLAIN
# The first of several questions is marked.
COUNTED = "{{ '[%d]' % (messages | length) }}" + PLAIN
