//! What causes each finding, and the right way.

/// The line of PyTorch that causes the finding called `name`, and the cure.
pub fn of(name: &str) -> (&'static str, &'static str) {
    match name {
        "damaged-bytes" => (
            "the file changed after torch.save wrote it: a disk, a copy, a transfer. torch.load compares no \
             checksums and loads the wrong numbers",
            "copy the file again and compare its size and digest with the original; --rescue takes what is damaged \
             from the base",
        ),
        "no-weights" => (
            "torch.save(optimizer.state_dict(), path), or a dict of results, or several models in one dict",
            "torch.save(model.state_dict(), path); of a dict with several models save the one that is meant",
        ),
        "nothing-quantized" => (
            "for layer in model.deberta.encoder.layer: layer = quantize_dynamic(layer, {nn.Linear})   \
             # binds a local name; the model keeps its float layers. (dtype=torch.float16 also stores float32.)",
            "model.deberta.encoder.layer[i] = quantize_dynamic(...), or quantize_dynamic(model, {nn.Linear}, \
             dtype=torch.qint8). Here: qberta quantize MODEL -o OUT, with --skip for layers to keep in float",
        ),
        "observers-left" => (
            "prepare(model); calibrate(model); torch.save(model.state_dict())   # convert was left out or raised",
            "the weights are still the float ones: qberta doctor FILE --base CHECKPOINT --rescue OUT, then \
             qberta quantize. In PyTorch: convert(model.eval(), inplace=True), with a qconfig on linears alone",
        ),
        "fake-quant-left" => (
            "prepare_qat(model); train(model); torch.save(model.state_dict())   # without convert(model.eval())",
            "the weights are the trained float ones: qberta doctor FILE --base CHECKPOINT --rescue OUT keeps them; \
             qberta quantize makes int8 of the result",
        ),
        "never-calibrated" => (
            "prepare(model); convert(model)   # no forward pass in between, so every activation scale is 1",
            "run a hundred real inputs between prepare and convert. qberta quantize needs none: activations are \
             quantized per token while running; weights of this file are kept by --rescue",
        ),
        "infinite-range" => (
            "an observer whose module is never called in forward (rel_embeddings is read as .weight, a QuantStub \
             that forward skips): min_val stays inf, max_val -inf",
            "set qconfig = None on modules that forward does not call; ranges of other modules are not affected",
        ),
        "observer-disabled" => (
            "model.apply(disable_observer)   # or disable_fake_quant: ranges no longer follow the weights",
            "disable observers for the last epochs only, call enable_fake_quant, then convert(model.eval())",
        ),
        "packed-params" => (
            "torch.save(quantized.state_dict())   # the keys *._packed_params exist in quantized modules only",
            "load into a model that went through the same steps: q = quantize_dynamic(FloatModel(config), {nn.Linear}); \
             q.load_state_dict(sd). Never strict=False. Or: qberta doctor FILE --base CHECKPOINT --rescue OUT",
        ),
        "embeddings-float" => (
            "quantize_dynamic(model, {nn.Linear})   # leaves nn.Embedding in float32",
            "qconfig_spec={nn.Linear: default_dynamic_qconfig, 'deberta.embeddings.word_embeddings': \
             float_qparams_weight_only_qconfig} (not nn.Embedding: rel_embeddings is read as .weight). \
             qberta quantize stores the word table as int8 rows by default",
        ),
        "quantized-layernorm" => (
            "model.qconfig = get_default_qconfig('fbgemm'); convert(model)   # LayerNorm then wants quantized \
             input, and gets float: Could not run 'quantized::layer_norm'",
            "no qconfig on the model; tq.QuantWrapper(linear) with a qconfig in place of each nn.Linear that is called, \
             so that LayerNorm stays float. qberta keeps it in float; --rescue keeps this file's weights",
        ),
        "unquantized-input" => (
            "model.qconfig = get_default_qconfig('fbgemm'); convert(model)   # an int8 linear wants int8 input, and \
             nothing on its way makes it: Could not run 'quantized::linear'",
            "model.qconfig = None, and each nn.Linear that is called: w = tq.QuantWrapper(linear); w.qconfig = ... in its place, then \
             prepare, calibrate, convert. Or quantize_dynamic. --rescue keeps this file's weights",
        ),
        "pickled-module" => (
            "torch.save(model, path)   # needs the same classes and versions to load, and executes the file",
            "torch.save(model.state_dict(), path). The weights in this file can be rescued without loading it: \
             qberta doctor FILE --base CHECKPOINT --rescue OUT",
        ),
        "torchscript" => (
            "torch.jit.save(torch.jit.trace(model, x), path)   # a program as it was traced, not a set of weights",
            "torch.save(model.state_dict(), path), or qberta quantize on the float checkpoint",
        ),
        "nameless-weights" => (
            "convert_pt2e(prepare_pt2e(exported, quantizer)).state_dict()   # int8 weights are constants of the \
             graph; which layer they belong to is only in the graph",
            "torch.export.save(program, path) keeps both; from here only qberta quantize on the float checkpoint",
        ),
        "missing-head" => (
            "torch.save(model.deberta.state_dict())   # or a filtered dict: pooler and classifier are not in it, \
             and loading initialises them at random",
            "save the state_dict of the whole model; --rescue with --base takes the head from the base and says so",
        ),
        "wrong-head" => (
            "a state dict of another task or number of labels than config.json says",
            "load with the class and num_labels it was trained with; pass that checkpoint as --base",
        ),
        "non-finite-scale" => (
            "quantizing a weight that holds NaN or infinity, or observers that saw them",
            "find the layer in the float model before quantizing; --rescue takes these modules from the base",
        ),
        "zero-scale" => (
            "a scale of 0: every number of the channel becomes 0, or infinity when quantized again",
            "give observers an eps, or leave channels of zeros at scale 1; --rescue takes these modules from the base",
        ),
        "non-finite-value" => (
            "training diverged or a half-precision weight overflowed before it was saved",
            "go back to an earlier checkpoint; such weights cannot be quantized",
        ),
        "saturated-channels" => (
            "weights quantized with a stale scale: most codes of a channel are the lowest or the highest",
            "recompute scales after the last change of the weights (convert after training, observers on); \
             --rescue takes these modules from the base",
        ),
        "tied-twice" => (
            "a clone or quantize_dynamic breaks the tie of decoder and word embeddings: one matrix, two copies",
            "leave the decoder out of quantization, call model.tie_weights() and save once. qberta stores it once",
        ),
        "tied-missing" => (
            "del sd['cls.predictions.decoder.weight']   # load_state_dict(strict=True) misses it",
            "call model.tie_weights() after loading with strict=False, or use from_pretrained; qberta reads the word \
             table in its place",
        ),
        "oversized-storage" => (
            "sd[k] = big[1000:1048]   # torch.save writes the whole storage that a view belongs to",
            "sd[k] = sd[k].clone() before saving; qberta writes what a tensor needs",
        ),
        "reduce-range" => (
            "get_default_qconfig('fbgemm')   # seven bits (reduce_range) so that old x86 instructions do not \
             overflow; qnnpack uses eight, so results differ between engines",
            "qconfig without reduce_range on CPUs with VNNI. qberta always uses eight bits and gives the same bits on \
             every CPU",
        ),
        "engine-dependent" => (
            "quantize_dynamic(model, {nn.Linear})   # the grid of the inputs is chosen while running: one for a whole \
             batch, seven bits with fbgemm and x86, eight with qnnpack, which ignores reduce_range",
            "pin torch.backends.quantized.engine and the batch where you compare. qberta gives every token its own \
             grid of eight bits and the same bits on every CPU, alone and in a batch",
        ),
        "unfinished-save" => (
            "torch.save(prepared_model, path)   # raises Can't pickle local object, and leaves an empty archive",
            "torch.save(model.state_dict(), path); there is nothing to rescue in this file",
        ),
        "onnx-graph" => (
            "torch.onnx.export(model, ...)   # a graph with its weights; names of weights are the exporter's",
            "qberta runs no ONNX graph and rescues none: qberta quantize on the checkpoint it was exported from",
        ),
        "onnx-incomplete" => (
            "a .onnx file copied without the file of weights beside it (model.onnx_data), or edited by hand",
            "copy every file of the export together; onnx.checker.check_model(path) must pass",
        ),
        "partly-float" => (
            "quantize_dynamic('model.onnx', out)   # takes products whose weight is stored; what is computed before \
             the weight is read, and other operators, stay float",
            "run onnxruntime's quant_pre_process first (it folds constants), then quantize. qberta quantize goes by \
             module and says which it leaves",
        ),
        "stored-twice" => (
            "quantize_dynamic('model.onnx', out)   # a weight that a float node still reads is kept beside its codes",
            "quantize every node that reads it, after onnxruntime's quant_pre_process. qberta stores each module once",
        ),
        "artefact-damaged" => (
            "the artefact changed after it was written, or was not copied completely",
            "copy it again, or make it again with qberta quantize",
        ),
        _ => ("", ""),
    }
}

/// The same for findings that in an ONNX graph have another cause.
pub fn of_graph(name: &str) -> Option<(&'static str, &'static str)> {
    Some(match name {
        "nothing-quantized" => (
            "torch.onnx.export(model, ...)   # exports the float model; a quantized state dict or a qconfig on it \
             changes nothing",
            "onnxruntime.quantization.quantize_dynamic('model.onnx', 'int8.onnx'). Here: qberta quantize MODEL -o OUT",
        ),
        "never-calibrated" => (
            "QuantizeLinear with scale 1 everywhere: quantize_static(...) with a reader that gave no data",
            "give CalibrationDataReader a hundred real inputs. qberta quantize needs none: activations are quantized \
             per token while running",
        ),
        "non-finite-scale" | "zero-scale" => (
            "quantizing a weight or activation that holds NaN or infinity, or only zeros; or a graph edited by hand",
            "find the tensor in the float graph (numpy.isfinite) and quantize again",
        ),
        "saturated-channels" => (
            "weights quantized with a scale of other weights: most codes of a channel are the lowest or the highest",
            "quantize again from the float graph",
        ),
        "embeddings-float" => (
            "quantize_dynamic('model.onnx', out, op_types_to_quantize=['MatMul'])   # leaves Gather in float",
            "op_types_to_quantize=['MatMul', 'Gather']. qberta quantize stores the word table as int8 rows by default",
        ),
        "reduce-range" => (
            "quantize_dynamic('model.onnx', out, reduce_range=True)   # seven bits, so that sums of older x86 \
             instructions do not overflow",
            "leave it out on CPUs with VNNI. qberta always uses eight bits and gives the same bits on every CPU",
        ),
        "engine-dependent" => (
            "weight_type=QuantType.QInt8 on unsigned inputs: on x86 without VNNI, onnxruntime adds two products in 16 \
             bits (vpmaddubsw), which overflows when codes use eight bits",
            "reduce_range=True or QuantType.QUInt8 for such CPUs. qberta gives the same bits on every CPU",
        ),
        _ => return None,
    })
}
