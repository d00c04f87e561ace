"""What becomes of every field of LMDeploy's interface: the contract tests hold this against the facts.

``mapped``: the plugin fills or reads it. ``native``: taken from ``EngineConfig.native`` as it is. ``refused``: in
``native`` it is an error, because a field of ours or our semantics decide it. Anything else is why it is not used.
"""

MAPPED, NATIVE, REFUSED = "mapped", "native", "refused"

_TEXT = "text is the SDK's: requests are token ids, and ids come back"
_DISAGGREGATED = "disaggregated serving"
_ROUTER = "which experts were chosen; the uniform API has no such thing"
_HIDDEN = "hidden states, which the uniform API does not have"
_NGRAMS = "stops by another rule than the request says"

#: Of both backends.
_COMMON = {
    "dtype": MAPPED,
    "tp": MAPPED,
    "dp": REFUSED,
    "ep": REFUSED,
    "session_len": MAPPED,
    "max_batch_size": MAPPED,
    "cache_max_entry_count": MAPPED,
    "enable_prefix_caching": MAPPED,
    "quant_policy": MAPPED,
    "download_dir": REFUSED,
    "revision": REFUSED,
    "max_prefill_token_num": MAPPED,
    "empty_init": REFUSED,
    "language_model_only": REFUSED,
    "hf_overrides": NATIVE,
    "enable_metrics": MAPPED,
}

DECISIONS = {
    "GenerationConfig": {
        "n": "the SDK sends a request for each",
        "max_new_tokens": MAPPED,
        "do_sample": MAPPED,
        "top_p": MAPPED,
        "top_k": MAPPED,
        "min_p": MAPPED,
        "temperature": MAPPED,
        "repetition_penalty": MAPPED,
        "ignore_eos": "without stop_token_ids there is no end to ignore",
        "random_seed": MAPPED,
        "stop_words": _TEXT,
        "bad_words": _TEXT,
        "stop_token_ids": MAPPED,
        "bad_token_ids": "bad words are sequences of tokens, and this one forbids a token anywhere",
        "min_new_tokens": "held back a token too long on one backend, the end of the other's engine",
        "skip_special_tokens": _TEXT,
        "spaces_between_special_tokens": _TEXT,
        "logprobs": MAPPED,
        "logprob_start_len": MAPPED,
        "response_format": MAPPED,
        "logits_processors": MAPPED,
        "output_logits": MAPPED,
        "output_last_hidden_state": _HIDDEN,
        "include_stop_str_in_output": _TEXT,
        "return_ppl": "a sum; the uniform API has an entry for each token",
        "with_cache": _DISAGGREGATED,
        "preserve_cache": _DISAGGREGATED,
        "migration_request": _DISAGGREGATED,
        "return_routed_experts": _ROUTER,
        "repetition_ngram_size": _NGRAMS,
        "repetition_ngram_threshold": _NGRAMS,
    },
    "TurbomindEngineConfig": _COMMON
    | {"cache_block_seq_len": MAPPED, "device_num": REFUSED, "devices": REFUSED, "model_format": REFUSED}
    | dict.fromkeys(("dist_init_addr", "nnodes", "node_rank"), REFUSED)
    | dict.fromkeys(
        (
            "async_",
            "attn_cp_size",
            "attn_dp_size",
            "attn_tp_size",
            "cache_checkpoint_interval",
            "cache_chunk_size",
            "cache_generation",
            "cache_prompt",
            "cache_prompt_boundary_skip",
            "communicator",
            "cp",
            "gemm_input_dtype",
            "max_prefill_iters",
            "mlp_dp_size",
            "mlp_tp_size",
            "moe_a2a_backend",
            "num_tokens_per_iter",
            "outer_dp_size",
            "rope_scaling_factor",
            "use_logn_attn",
        ),
        NATIVE,
    ),
    "PytorchEngineConfig": _COMMON
    | {
        "adapters": MAPPED,
        "block_size": MAPPED,
        "device_type": MAPPED,
        "dp_rank": REFUSED,
        "eager_mode": MAPPED,
        "enable_mp_engine": REFUSED,
        "logprobs_mode": MAPPED,
        "model_format": MAPPED,
        "num_gpu_blocks": MAPPED,
        "role": REFUSED,
        "thread_safe": REFUSED,
    }
    | dict.fromkeys(
        (
            "dllm_block_length",
            "dllm_confidence_threshold",
            "dllm_denoising_steps",
            "dllm_unmasking_strategy",
            "kv_transfer_config",
            "migration_backend",
            "mp_engine_backend",
        ),
        REFUSED,
    )
    | dict.fromkeys(
        (
            "attn_tp_size",
            "cudagraph_capture_batch_sizes",
            "custom_module_map",
            "distributed_executor_backend",
            "enable_eplb",
            "enable_microbatch",
            "enable_return_routed_experts",
            "enable_transfer_obj_ref",
            "kernel_block_size",
            "mlp_tp_size",
            "moe_tp_size",
            "num_cpu_blocks",
            "piecewise_cudagraph_max_tokens",
            "prefill_interval",
            "prefix_cache_decode_state_interval",
            "prefix_cache_state_budget",
        ),
        NATIVE,
    ),
    "SpeculativeConfig": {
        "method": MAPPED,
        "model": MAPPED,
        "num_speculative_tokens": MAPPED,
        "dflash_block_size": "the number of tokens says it",
    },
    "EngineOutput": {
        "status": MAPPED,
        "token_ids": MAPPED,
        "logprobs": MAPPED,
        "logits": MAPPED,
        "last_hidden_state": _HIDDEN,
        "cache_block_ids": _DISAGGREGATED,
        "req_metrics": MAPPED,
        "routed_experts": _ROUTER,
        "ce_loss": "a sum; the uniform API has an entry for each token",
    },
    "RequestMetrics": {
        "token_timestamp": "latencies are measured where outputs are read",
        "engine_events": MAPPED,
        "spec_info": MAPPED,
        "cached_tokens": MAPPED,
    },
    "ScheduleMetrics": {
        "active_seqs": MAPPED,
        "waiting_seqs": MAPPED,
        "cache_usage": MAPPED,
        "prefix_cache_hit_rate": "hits are counted by request",
        "scheduler_tick": "health_probe looks at it",
    },
}

#: Parameters of what is called → what becomes of them.
CALLS = {
    "AsyncEngine": {
        "model_path": MAPPED,
        "model_name": "a name for servers",
        "backend": MAPPED,
        "backend_config": MAPPED,
        "chat_template_config": _TEXT,
        "max_log_len": "requests are not logged",
        "trust_remote_code": MAPPED,
        "speculative_config": MAPPED,
        "allowed_media_domains": "models with images",
        "kwargs": "nothing reads them",
    },
    "EngineInstance": {
        "session_id": MAPPED,
        "input_ids": MAPPED,
        "gen_config": MAPPED,
        "multimodal": "models with images",
        "adapter_name": MAPPED,
        "notify_add_msg_func": "a hook of LMDeploy's own servers",
        "kwargs": "nothing reads them",
    },
    "TurboMindInstance": {
        "session_id": MAPPED,
        "input_ids": MAPPED,
        "input_embeddings": "prompts of embeddings, which the uniform API does not have",
        "input_embedding_ranges": "prompts of embeddings, which the uniform API does not have",
        "multimodal": "models with images",
        "gen_config": MAPPED,
        "stream_output": MAPPED,
        "kwargs": "nothing reads them",
    },
}
