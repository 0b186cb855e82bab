"""The fields of config.json that cannot change what a model of any architecture computes.

`Architecture.read` refuses a field that nothing reads and that is not listed here: it may turn a known
architecture into another model. An architecture adds its own to its `harmless` and `neutral`.
"""

from collections.abc import Mapping
from typing import Any

HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _flash_attn_2_enabled _name_or_path architectures auto_map custom_pipelines
    dtype model_name model_type torch_dtype transformers_version transformers.js_config unsloth_fixed
    unsloth_version attn_implementation gradient_checkpointing output_attentions output_hidden_states
    output_router_logits return_dict torchscript use_bfloat16 use_cache use_flash_attention
    use_flash_attn attention_dropout attention_probs_dropout_prob attn_pdrop embd_pdrop hidden_dropout
    hidden_dropout_prob initializer_range neftune_noise_alpha pretraining_tp resid_pdrop tf_legacy_loss
    router_aux_loss_coef router_jitter_noise attn_dropout dropout ffn_dropout num_nextn_predict_layers
    classifier_dropout finetuning_task id2label num_labels label2id prefix problem_type
    task_specific_params tokenizer_class bos_token eos_token pad_token unk_token bos_token_id
    cls_token_id decoder_start_token_id eos_token_id pad_token_id sep_token_id unk_token_id
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p chunk_size_feed_forward
    max_sequence_length max_window_layers model_max_length quantization_config
    tokenizer_model_max_length
    """.split()  # noqa: SIM905
)
"""Names of fields that may have any value: descriptions, training, generation's defaults, which are read
elsewhere, and "quantization_config", which `tgi.weights.formats` checks."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attn_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "is_llama_config": (True,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "rope_parameters": ({},),
    "rope_scaling": ({},),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_sliding_window": (False,),
}
"""Values with which a field changes nothing; with any other it is refused."""
