package flops

import "strings"

// formulaFor returns the formula of an operator by its name; nil = unknown.
func formulaFor(name string) formula {
	namespace, base := baseName(name)
	switch namespace {
	case "aten":
		return atenFormula(base)
	case "prims":
		return primitiveFormula(base)
	case "torchvision":
		return visionFormula(base)
	case "torch_attn":
		return libraryAttention(base)
	case "flash_attn":
		return libraryAttention(base)
	case "prim", "profiler", "rngprims", "debugprims", "c10d", "_c10d_functional", "c10d_functional", "_dtensor",
		"fsdp", "bucketing", "streams":
		// Attributes of tensors, record functions, random states and communication.
		return move
	}
	return nil
}

func atenFormula(base string) formula {
	if f := exactFormula(base); f != nil {
		return f
	}
	if f := estimatedFormula(base); f != nil {
		return f
	}
	if isView(base) {
		return view
	}
	if isMove(base) {
		return move
	}
	if list, ok := strings.CutPrefix(base, "_foreach_"); ok {
		if f := estimatedFormula(list); f != nil {
			return f
		}
		if isMove(list) {
			return move
		}
	}
	if viewed, ok := strings.CutSuffix(base, "_copy"); ok && isView(viewed) {
		return move
	}
	if forward, ok := strings.CutSuffix(base, "_backward_data"); ok {
		return gradientFormula(forward)
	}
	if forward, ok := strings.CutSuffix(base, "_backward"); ok {
		return gradientFormula(forward)
	}
	return nil
}

// gradientFormula is the recorded backward of an estimated operator or of a copy.
func gradientFormula(forward string) formula {
	switch forward {
	case "embedding_dense", "embedding", "index_select", "embedding_bag", "_embedding_bag", "_embedding_bag_dense",
		"_embedding_bag_per_sample_weights", "gather", "max_pool2d", "max_pool2d_with_indices",
		"max_pool3d_with_indices", "value_selecting_reduction":
		return scattered
	}
	switch {
	case exactFormula(forward) != nil:
		// An exact operator's backward has a formula of its own or is unknown.
		return nil
	case isView(forward), isMove(forward):
		return move
	}
	switch forward {
	case "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm", "_batch_norm_impl_index",
		"batch_norm_elemt", "native_layer_norm", "native_group_norm", "layer_norm", "group_norm", "_fused_rms_norm",
		"rms_norm":
		return gradient(10)
	case "_softmax", "_log_softmax", "_safe_softmax", "_masked_softmax", "_sparse_softmax":
		return gradient(4)
	case "threshold", "hardtanh", "leaky_relu", "sigmoid", "tanh", "nll_loss", "nll_loss2d", "avg_pool2d",
		"avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
		"unfold":
		return gradient(1)
	}
	if estimatedFormula(forward) != nil {
		return gradient(2)
	}
	return nil
}

// exactFormula lists the operators of the headline, the whole ones that inference mode shows included.
func exactFormula(base string) formula {
	switch base {
	case "mm":
		return matrixProduct(0)
	case "addmm", "_addmm_activation", "_scaled_addmm":
		return matrixProduct(1)
	case "_int_mm", "_scaled_mm", "_scaled_mm_v2":
		return fixedMatrixProduct(0)
	case "bmm":
		return batchedProduct(0)
	case "baddbmm", "addbmm":
		return batchedProduct(1)
	case "matmul", "linalg_matmul":
		return matmulProduct
	case "linear", "mkldnn_linear", "_mkl_linear":
		return linear
	case "_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu",
		"_weight_int4pack_mm_with_scales_and_zeros", "_mixed_dtypes_linear", "_dyn_quant_matmul_4bit":
		return packedProduct
	case "mv":
		return matrixVector(0)
	case "addmv":
		return matrixVector(1)
	case "dot", "vdot":
		return dotProduct
	case "addr":
		return outerSum
	case "inner":
		return innerProduct
	case "tensordot":
		return tensorProduct
	case "linalg_vecdot":
		return vectorDot
	case "_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2":
		return groupedProduct
	case "_trilinear":
		return trilinear
	case "bilinear":
		return bilinearLayer
	case "einsum":
		return einsum
	case "convolution", "_convolution", "convolution_overrideable":
		return convolutionForward
	case "conv1d", "conv2d", "conv3d", "_convolution_mode", "cudnn_convolution", "cudnn_convolution_relu",
		"cudnn_convolution_add_relu", "miopen_convolution", "miopen_convolution_relu", "miopen_convolution_add_relu",
		"miopen_depthwise_convolution", "mkldnn_convolution", "thnn_conv2d", "_slow_conv2d_forward", "slow_conv3d",
		"slow_conv3d_forward", "slow_conv_dilated2d", "slow_conv_dilated3d", "_conv_depthwise2d", "conv_depthwise3d",
		"_nnpack_spatial_convolution", "_mps_convolution":
		return plainConvolution
	case "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "cudnn_convolution_transpose",
		"miopen_convolution_transpose", "slow_conv_transpose2d", "slow_conv_transpose3d",
		"_mps_convolution_transpose":
		return transposedConvolution
	case "convolution_backward", "convolution_backward_overrideable":
		return convolutionBackward
	case "conv_tbc":
		return timeConvolution
	case "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
		"_scaled_dot_product_attention_math_for_mps":
		return attention(headsFirst, topLeft, false)
	case "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
		"_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
		"_scaled_dot_product_fused_attention_overrideable", "_cudnn_attention_forward",
		"_cudnn_attention_forward_no_dropout_inplace":
		return attention(headsFirst, topLeft, true)
	case "_flash_attention_forward", "_flash_attention_forward_no_dropout_inplace":
		return attention(sequenceFirst, bottomRight, true)
	case "_efficient_attention_forward":
		return attention(sequenceFirst, topLeft, true)
	case "_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention_backward",
		"_scaled_dot_product_cudnn_attention_backward", "_scaled_dot_product_flash_attention_for_cpu_backward",
		"_scaled_dot_product_fused_attention_overrideable_backward", "_cudnn_attention_backward":
		return attentionGradient(headsFirst, topLeft)
	case "_flash_attention_backward":
		return attentionGradient(sequenceFirst, bottomRight)
	case "_efficient_attention_backward":
		return attentionGradient(sequenceFirst, topLeft)
	case "_native_multi_head_attention":
		return nativeAttention
	case "_transformer_encoder_layer_fwd":
		return encoderLayer
	case "lstm", "gru", "rnn_tanh", "rnn_relu", "_cudnn_rnn", "miopen_rnn":
		return recurrentLayer
	case "mkldnn_rnn_layer":
		return recurrentSingle
	case "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell":
		return recurrentStep
	case "_cudnn_rnn_backward", "miopen_rnn_backward":
		return recurrentGradient(recurrentLayer)
	case "mkldnn_rnn_layer_backward":
		return recurrentGradient(recurrentSingle)
	}
	return nil
}

// libraryAttention lists the attention operators that libraries register with torch.
func libraryAttention(base string) formula {
	switch base {
	case "_varlen_attn":
		// torch_attn.
		return attention(packed, bottomRight, true)
	case "_varlen_attn_backward":
		return attentionGradient(packed, bottomRight)
	case "_flash_attn_forward":
		return attention(sequenceFirst, bottomRight, true)
	case "_flash_attn_varlen_forward":
		return attention(packed, bottomRight, true)
	}
	return nil
}

func visionFormula(base string) formula {
	switch base {
	case "deform_conv2d":
		return deformableConvolution
	case "roi_align", "ps_roi_align":
		return regionAlignment
	case "roi_pool", "ps_roi_pool":
		return elementwiseOperation(1, 0)
	case "nms":
		return suppression
	case "_roi_align_backward", "_ps_roi_align_backward":
		return gradient(28)
	case "_roi_pool_backward", "_ps_roi_pool_backward":
		return gradient(1)
	}
	return nil
}

// primitiveFormula lists the prims that eager mode shows; the others are the aten operators under the same name.
func primitiveFormula(base string) formula {
	switch base {
	case "convert_element_type", "device_put", "iota", "broadcast_in_dim", "copy_strided", "copy_to", "clone", "cat",
		"fill", "full", "full_like", "scalar_tensor", "normal", "uniform", "rev", "empty", "empty_permuted",
		"empty_strided", "_make_token", "_sink_tokens", "resize", "item":
		return move
	case "collapse_view", "split_dim", "squeeze", "transpose", "as_strided", "view_of", "view_of_dtype", "conj",
		"real", "imag", "collapse", "reshape", "maximum_value", "minimum_value":
		return view
	case "fft_c2c":
		return transform(false)
	case "fft_r2c", "fft_c2r":
		return transform(true)
	case "svd":
		return decomposition(singularValues)
	case "shift_left", "shift_right_arithmetic":
		return elementwiseOperation(1, 0)
	}
	return estimatedFormula(base)
}
