package flops

// estimatedFormula lists the operators with an estimate per element.
func estimatedFormula(base string) formula {
	switch base {
	case "add", "sub", "rsub", "mul", "neg", "abs", "absolute", "clamp", "clamp_min", "clamp_max", "clip", "relu",
		"relu6", "leaky_relu", "hardtanh", "threshold", "where", "eq", "ne", "lt", "le", "gt", "ge", "maximum",
		"minimum", "fmax", "fmin", "sign", "sgn", "signbit", "square", "bitwise_and", "bitwise_or", "bitwise_xor",
		"bitwise_not", "bitwise_left_shift", "bitwise_right_shift", "logical_and", "logical_or", "logical_xor",
		"logical_not", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "__iand__", "__ior__", "__ixor__",
		"__ilshift__", "__irshift__", "floor", "ceil", "round", "trunc", "frac", "fix", "isnan", "isinf", "isfinite",
		"isposinf", "isneginf", "isclose", "isin", "heaviside", "nan_to_num", "subtract", "multiply", "greater",
		"greater_equal", "less", "less_equal", "not_equal", "negative", "positive", "copysign", "hardshrink",
		"softshrink", "_prelu_kernel", "prelu", "native_dropout", "_fused_dropout", "rrelu", "rrelu_with_noise",
		"rrelu_with_noise_functional", "deg2rad", "rad2deg", "gcd", "lcm", "nextafter", "_masked_scale",
		"conj_physical", "_conj_physical", "ldexp":
		return elementwiseOperation(1, 0)
	case "addcmul", "lerp", "_add_relu", "hardswish", "hardsigmoid", "addcdiv", "cross", "linalg_cross":
		return elementwiseOperation(3, 0)
	case "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "tanh", "sigmoid", "gelu", "silu", "erf", "erfc",
		"erfinv", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh",
		"arctan2", "sinc", "pow", "float_power", "sqrt", "rsqrt", "reciprocal", "div", "divide", "true_divide",
		"floor_divide", "remainder", "fmod", "elu", "celu", "selu", "mish", "softplus", "log_sigmoid",
		"log_sigmoid_forward", "logit", "lgamma", "digamma", "polygamma", "mvlgamma", "i0", "igamma", "igammac",
		"hypot", "logaddexp", "logaddexp2", "xlogy", "angle", "polar", "special_entr", "special_erf", "special_erfc",
		"special_erfcx", "special_erfinv", "special_exp2", "special_expit", "special_expm1", "special_i0",
		"special_i0e", "special_i1", "special_i1e", "special_log1p", "special_log_ndtr", "special_ndtr",
		"special_ndtri", "special_xlog1py", "special_xlogy", "special_zeta", "special_digamma", "special_psi",
		"special_gammaln", "special_gammainc", "special_gammaincc", "special_logit", "special_sinc",
		"special_bessel_j0", "special_bessel_j1", "special_bessel_y0", "special_bessel_y1", "cbrt", "erf_inv",
		"ndtri", "zeta", "bessel_i0", "bessel_i0e", "bessel_i1", "bessel_i1e", "bessel_j0", "bessel_j1", "erfcx":
		return elementwiseOperation(1, 1)
	case "glu":
		return elementwiseOperation(2, 1)
	case "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "_masked_softmax", "special_softmax",
		"special_log_softmax", "logsumexp", "special_logsumexp":
		return perInput(4, 1)
	case "logcumsumexp", "_logcumsumexp":
		return perInput(2, 1)
	case "sum", "nansum", "mean", "nanmean", "prod", "max", "min", "amax", "amin", "aminmax", "_aminmax", "argmax",
		"argmin", "any", "all", "cumsum", "cumprod", "cummax", "cummin", "_cummax_helper", "_cummin_helper", "norm",
		"native_norm", "linalg_vector_norm", "linalg_norm", "linalg_matrix_norm", "frobenius_norm", "count_nonzero",
		"trace", "dist", "bincount", "histc", "diff", "_is_all_true", "_is_any_true", "equal", "allclose", "xor_sum",
		"linalg__powsum", "segment_reduce", "sum_to_size", "_grad_sum_to_size":
		return perInput(1, 0)
	case "var", "std", "var_mean", "std_mean", "renorm", "norm_except_dim", "_weight_norm_interface", "_weight_norm",
		"embedding_renorm":
		return perInput(3, 0)
	case "native_layer_norm", "layer_norm", "native_group_norm", "group_norm", "instance_norm":
		return func(o *Operator) cost {
			if o.operand("weight") == nil {
				return perInput(4, 0)(o)
			}
			return perInput(5, 0)(o)
		}
	case "rms_norm", "_fused_rms_norm":
		return perInput(4, 0)
	case "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "batch_norm",
		"cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_impl_index":
		return batchNorm(trainingFlag)
	case "_batch_norm_with_update", "_batch_norm_with_update_functional":
		return batchNorm(func(*Operator) bool { return true })
	case "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "batch_norm_elemt":
		return batchNorm(func(*Operator) bool { return false })
	case "batch_norm_stats", "batch_norm_update_stats", "batch_norm_gather_stats",
		"batch_norm_gather_stats_with_counts":
		return perInput(3, 0)
	case "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
		"max_pool3d_with_indices", "mkldnn_max_pool2d", "mkldnn_max_pool3d", "fractional_max_pool2d",
		"fractional_max_pool3d":
		return pooling(true)
	case "avg_pool1d", "avg_pool2d", "avg_pool3d":
		return pooling(false)
	case "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
		"_adaptive_avg_pool3d", "mkldnn_adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d",
		"adaptive_max_pool3d":
		return perInput(1, 0)
	case "upsample_linear1d":
		return elementwiseOperation(3, 0)
	case "upsample_bilinear2d", "_upsample_bilinear2d_aa", "grid_sampler", "grid_sampler_2d",
		"_grid_sampler_2d_cpu_fallback", "cudnn_grid_sampler":
		return elementwiseOperation(7, 0)
	case "upsample_trilinear3d", "grid_sampler_3d":
		return elementwiseOperation(15, 0)
	case "upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa":
		return elementwiseOperation(35, 0)
	case "affine_grid_generator", "cudnn_affine_grid_generator":
		return elementwiseOperation(5, 0)
	case "mse_loss", "l1_loss", "hinge_embedding_loss", "margin_ranking_loss":
		return perInput(3, 0)
	case "smooth_l1_loss", "huber_loss", "multi_margin_loss", "multilabel_margin_loss",
		"multilabel_margin_loss_forward", "triplet_margin_loss":
		return perInput(4, 0)
	case "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "soft_margin_loss", "poisson_nll_loss":
		return perInput(5, 2)
	case "nll_loss", "nll_loss_forward", "nll_loss2d", "nll_loss2d_forward", "nll_loss_nd":
		return func(o *Operator) cost {
			target := o.input(1)
			if target == nil {
				return unknownBecause("target is missing")
			}
			return estimate(o, target.elements().Times(2), Number{})
		}
	case "cross_entropy_loss":
		return perInput(5, 1)
	case "ctc_loss", "_ctc_loss", "_cudnn_ctc_loss":
		return perInput(8, 3)
	case "cosine_similarity", "pairwise_distance", "cosine_embedding_loss":
		return perInput(6, 0)
	case "_thnn_fused_lstm_cell":
		// Four gates per hidden unit: four sums, five functions, four combinations.
		return perInput(3, 1)
	case "_thnn_fused_gru_cell":
		return perInput(3, 1)
	case "_thnn_fused_lstm_cell_backward_impl", "_thnn_fused_gru_cell_backward":
		return elementwiseOperation(3, 0)
	case "batch_norm_backward_reduce", "batch_norm_backward_elemt":
		return perInput(4, 0)
	case "kron", "ger", "outer":
		// Multiplications alone, as torch executes them outside inference mode.
		return elementwiseOperation(1, 0)
	case "_transform_bias_rescale_qkv":
		return perInput(2, 0)
	case "index_add", "scatter_add", "scatter_reduce", "index_reduce", "index_put", "_index_put_impl",
		"_unsafe_index_put", "_unsafe_masked_index_put_accumulate", "put":
		return accumulation
	case "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only":
		return bags
	case "_cdist_forward", "cdist", "_euclidean_dist":
		return distances
	case "_pdist_forward", "pdist":
		return func(o *Operator) cost {
			x, y := o.input(0), o.output(0)
			if !rank(x, 2) || y == nil {
				return unknownBecause("input or result is missing")
			}
			return estimate(o, y.elements().Times(uint64(x.Dims[1])).Times(3), Number{})
		}
	case "_fft_c2c", "fft_fft", "fft_ifft", "fft_fft2", "fft_ifft2", "fft_fftn", "fft_ifftn":
		return transform(false)
	case "_fft_r2c", "_fft_c2r", "fft_rfft", "fft_irfft", "fft_rfft2", "fft_irfft2", "fft_rfftn", "fft_irfftn",
		"fft_hfft", "fft_ihfft":
		return transform(true)
	case "linalg_lu", "linalg_lu_factor", "linalg_lu_factor_ex", "_lu_with_info", "linalg_det", "_linalg_det",
		"linalg_slogdet", "_linalg_slogdet", "slogdet", "det", "logdet", "linalg_ldl_factor", "linalg_ldl_factor_ex":
		return decomposition(cube(2, 3))
	case "linalg_cholesky", "linalg_cholesky_ex":
		return decomposition(cube(1, 3))
	case "linalg_inv", "linalg_inv_ex", "inverse", "cholesky_inverse", "pinverse", "linalg_pinv":
		return decomposition(cube(2, 1))
	case "linalg_solve", "linalg_solve_ex", "_linalg_solve_ex":
		return solve
	case "linalg_solve_triangular", "triangular_solve", "cholesky_solve", "_cholesky_solve_helper", "lu_solve",
		"linalg_lu_solve", "linalg_ldl_solve":
		return substitution
	case "linalg_qr", "geqrf", "linalg_householder_product", "orgqr", "ormqr":
		return decomposition(householder)
	case "linalg_eigh", "_linalg_eigh", "linalg_eigvalsh":
		return decomposition(cube(9, 1))
	case "linalg_eig", "linalg_eigvals", "_linalg_eigvals":
		return decomposition(cube(25, 1))
	case "linalg_svd", "_linalg_svd", "linalg_svdvals", "svd":
		return decomposition(singularValues)
	case "_fused_adam", "_fused_adamw":
		return elementwiseOperation(12, 1)
	case "_fused_sgd":
		return elementwiseOperation(4, 0)
	case "_fused_adagrad":
		return elementwiseOperation(6, 1)
	case "_amp_foreach_non_finite_check_and_unscale":
		return elementwiseOperation(1, 0)
	case "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
		"fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask",
		"_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "_fake_quantize_learnable_per_tensor_affine",
		"_fake_quantize_learnable_per_channel_affine", "_fused_moving_avg_obs_fq_helper",
		"fused_moving_avg_obs_fake_quant", "_fused_moving_avg_obs_fq_helper_functional", "quantize_per_tensor",
		"quantize_per_channel", "quantize_per_tensor_dynamic", "dequantize":
		return perInput(4, 0)
	}
	return nil
}

// accumulation is one addition per element that is added into another tensor: the last operand.
func accumulation(o *Operator) cost {
	if len(o.Inputs) == 0 {
		return unknownBecause("operands are missing")
	}
	return estimate(o, o.Inputs[len(o.Inputs)-1].elements(), Number{})
}

// substitution is one triangular solve: n^2 for each right-hand side.
func substitution(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil || len(a.Dims) < 2 || len(b.Dims) < 1 {
		return unknownBecause("operands are not a matrix and its right-hand sides")
	}
	n := min(a.Dims[len(a.Dims)-1], b.Dims[max(len(b.Dims)-2, 0)])
	return estimate(o, a.elements().Add(b.elements()).Times(uint64(n)), Number{})
}

// isView lists the operators that only look at a tensor in another way, or ask about it.
func isView(base string) bool {
	switch base {
	case "view", "_unsafe_view", "_reshape_alias", "reshape", "reshape_as", "view_as", "expand", "expand_as",
		"broadcast_to", "broadcast_tensors", "permute", "transpose", "t", "swapaxes", "swapdims", "movedim",
		"moveaxis", "numpy_T", "mT", "mH", "matrix_H", "adjoint", "squeeze", "unsqueeze", "select", "slice", "split",
		"split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "unsafe_chunk", "unsafe_split",
		"unsafe_split_with_sizes", "unbind", "narrow", "unfold", "diagonal", "linalg_diagonal", "as_strided", "alias",
		"detach", "flatten", "unflatten", "ravel", "view_as_real", "view_as_complex", "real", "imag", "_conj", "conj",
		"_neg_view", "resolve_conj", "resolve_neg", "lift_fresh", "lift", "_lazy_clone", "data", "atleast_1d",
		"atleast_2d", "atleast_3d", "meshgrid", "_fw_primal", "_make_dual", "_unpack_dual", "retain_grad", "set",
		"set_data", "_version", "output_nr", "is_leaf", "size", "stride", "dim", "numel", "len", "storage_offset",
		"sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "sym_is_contiguous", "is_contiguous",
		"is_strides_like_format", "is_non_overlapping_and_dense", "is_same_size", "is_set_to", "is_nonzero",
		"is_floating_point", "is_complex", "is_conj", "is_neg", "is_signed", "is_pinned", "is_inference",
		"result_type", "can_cast", "promote_types", "_local_scalar_dense", "item", "_assert_async", "_assert_scalar",
		"_assert_tensor_metadata", "_functional_assert_async", "_functional_assert_scalar", "sym_constrain_range",
		"sym_constrain_range_for_size", "_functional_sym_constrain_range", "_functional_sym_constrain_range_for_size",
		"_make_dep_token", "_print", "record_stream", "_fused_sdp_choice", "_use_cudnn_ctc_loss",
		"_use_cudnn_rnn_flatten_weight", "_cudnn_rnn_flatten_weight", "cudnn_is_acceptable",
		"_has_compatible_shallow_copy_type", "_nested_get_values", "_nested_get_offsets", "_nested_get_lengths",
		"_nested_get_ragged_idx", "_nested_get_min_seqlen", "_nested_get_max_seqlen", "_nested_get_jagged_dummy",
		"_nested_view_from_jagged", "_nested_view_from_buffer", "_nested_tensor_size", "_nested_tensor_strides",
		"_nested_tensor_storage_offsets", "values", "indices", "_values", "_indices", "crow_indices", "col_indices",
		"ccol_indices", "row_indices", "_nnz", "sparse_dim", "dense_dim", "is_coalesced", "_is_zerotensor", "_dimI",
		"_dimV", "_linalg_check_errors", "_debug_has_internal_overlap", "_validate_sparse_coo_tensor_args",
		"get_device", "device", "is_grad_enabled", "set_grad_enabled":
		return true
	}
	return false
}

// isMove lists the operators that copy, gather, fill, sort or draw random numbers: no arithmetic on their elements.
func isMove(base string) bool {
	switch base {
	case "clone", "copy", "_to_copy", "to", "_to_cpu", "cpu", "cuda", "type_as", "contiguous",
		"_autocast_to_reduced_precision", "_autocast_to_full_precision", "_cast_Float", "_cast_Half", "_cast_Double",
		"_cast_Byte", "_cast_Char", "_cast_Int", "_cast_Long", "_cast_Short", "pin_memory", "_pin_memory",
		"_copy_from", "_copy_from_and_resize", "cat", "concat", "concatenate", "_chunk_cat", "stack", "_stack",
		"hstack", "vstack", "dstack", "column_stack", "row_stack", "block_diag", "cartesian_prod", "combinations",
		"repeat", "tile", "repeat_interleave", "roll", "flip", "fliplr", "flipud", "rot90", "pad", "constant_pad_nd",
		"_pad_enum", "_pad_circular", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
		"replication_pad2d", "replication_pad3d", "embedding", "gather", "index", "_unsafe_index",
		"_unsafe_masked_index", "index_select", "index_copy", "index_fill", "take", "take_along_dim", "masked_fill",
		"masked_select", "masked_scatter", "scatter", "slice_scatter", "select_scatter", "diagonal_scatter",
		"as_strided_scatter", "slice_inverse", "fill", "fill_diagonal", "zero", "zeros", "zeros_like", "ones",
		"ones_like", "full", "full_like", "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty",
		"new_empty_strided", "new_zeros", "new_ones", "new_full", "_new_zeros_with_same_feature_meta",
		"scalar_tensor", "_efficientzerotensor", "arange", "range", "linspace", "logspace", "eye", "tril_indices",
		"triu_indices", "tril", "triu", "diag", "diag_embed", "diagflat", "vander", "one_hot", "complex", "resize",
		"resize_as", "_resize_output", "_reshape_from_tensor", "_shape_as_tensor", "tensor", "as_tensor", "from_file",
		"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "im2col", "col2im",
		"upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
		"_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "max_unpool2d", "max_unpool3d", "sort", "argsort",
		"msort", "topk", "kthvalue", "median", "nanmedian", "mode", "unique_dim", "unique_consecutive",
		"unique_dim_consecutive", "_unique", "_unique2", "searchsorted", "bucketize", "nonzero", "nonzero_numpy",
		"nonzero_static", "argwhere", "bernoulli", "binomial", "cauchy", "exponential", "geometric", "log_normal",
		"multinomial", "normal", "normal_functional", "poisson", "rand", "rand_like", "randint", "randint_like",
		"randn", "randn_like", "random", "randperm", "uniform", "dropout", "feature_dropout", "alpha_dropout",
		"feature_alpha_dropout", "_cudnn_init_dropout_state", "_standard_gamma", "_sample_dirichlet",
		"_sobol_engine_draw", "_no_grad_fill", "_no_grad_normal", "_no_grad_uniform", "_no_grad_zero",
		"_philox_normal", "_philox_uniform", "_philox_randint", "_philox_key_split", "_philox_key_fold_in",
		"hamming_window", "hann_window", "bartlett_window", "blackman_window", "kaiser_window",
		"_pack_padded_sequence", "_pad_packed_sequence", "_pack_sequence", "pad_sequence", "_nested_from_padded",
		"_nested_from_padded_and_nested_example", "_nested_from_padded_tensor", "_nested_tensor_from_mask",
		"_nested_tensor_from_mask_left_aligned", "_nested_tensor_from_tensor_list", "to_padded_tensor",
		"nested_to_padded_tensor", "_jagged_to_padded_dense_forward", "_padded_dense_to_jagged_forward", "to_dense",
		"_to_dense", "to_mkldnn", "_mkldnn_reshape", "_mkldnn_transpose", "mkldnn_reorder_conv2d_weight",
		"mkldnn_reorder_conv3d_weight", "_fill_mem_eff_dropout_mask", "_convert_weight_to_int4pack",
		"_convert_weight_to_int4pack_for_cpu", "_dyn_quant_pack_4bit_weight", "fft_fftshift", "fft_ifftshift",
		"fft_fftfreq", "fft_rfftfreq", "_list_to_tensor", "frexp", "lu_unpack", "int_repr", "_amp_update_scale",
		"chalf":
		return true
	}
	return false
}
