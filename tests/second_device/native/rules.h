// What a GPU refuses, and what its host waits for.
#pragma once
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <atomic>
#include <string>
#include <unordered_set>

namespace second_device {
using at::Tensor;
using c10::IValue;

inline PyObject* listener = nullptr;  // listener(kind, operation)
inline std::atomic<bool> is_heard{false};

inline void report(const char* kind, const std::string& operation) {
  if (!is_heard) return;
  pybind11::gil_scoped_acquire gil;
  PyObject* result = PyObject_CallFunction(listener, "ss", kind, operation.c_str());
  if (result) Py_DECREF(result);
  else PyErr_WriteUnraisable(listener);
}

inline bool begins(const std::string& name, const char* prefix) { return name.rfind(prefix, 0) == 0; }

inline bool is_indexing(const std::string& name) {
  return begins(name, "aten::index.Tensor") || begins(name, "aten::index_put") ||
      begins(name, "aten::_index_put_impl_") || begins(name, "aten::_unsafe_index");
}

// Operations with "device_check: NoCheck" in native_functions.yaml: they accept scalars of the host.
inline std::unordered_set<std::string> unchecked;

inline void check_indices(const std::string& name, c10::ArrayRef<IValue> arguments) {
  const Tensor& self = arguments[0].toTensor();
  for (const auto& index : arguments[1].toOptionalTensorVector()) {
    const std::optional<Tensor> t = index;
    if (!t || !t->defined() || t->device() == self.device()) continue;
    TORCH_CHECK(t->device().is_cpu(), "indices should be either on cpu or on the same device as the ",
                "indexed tensor (", self.device(), ")");
    report("copy", name + " [index on the host]");
  }
  for (size_t i = 2; i < arguments.size(); ++i) {
    if (!arguments[i].isTensor() || !arguments[i].toTensor().defined()) continue;
    const Tensor& value = arguments[i].toTensor();
    const bool is_host_scalar = value.dim() == 0 && value.device().is_cpu();
    TORCH_CHECK(value.device() == self.device() || is_host_scalar, "Expected all tensors to be on the ",
                "same device, but the value is on ", value.device(), " and self on ", self.device(),
                " (", name, ")");
  }
}

inline void check_devices(
    const std::string& name, const c10::FunctionSchema& schema, c10::ArrayRef<IValue> arguments) {
  if (is_indexing(name)) return check_indices(name, arguments);
  // Optimizers keep their step counts on the host, which the foreach kernels accept.
  const bool is_foreach = begins(name, "aten::_foreach"), is_lenient = unchecked.count(name);
  std::optional<c10::Device> common;
  auto look = [&](const Tensor& t, const c10::Argument& argument) {
    if (!t.defined()) return;
    const bool is_written = argument.alias_info() && argument.alias_info()->isWrite();
    const bool is_host_scalar = t.device().is_cpu() && t.dim() == 0;
    if (is_host_scalar && (is_foreach || (is_lenient && !is_written))) return;
    if (!common) common = t.device();
    TORCH_CHECK(*common == t.device(), "Expected all tensors to be on the same device, but ",
                argument.name(), " is on ", t.device(), " and others on ", *common, " (", name, ")");
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    const IValue& value = arguments[i];
    const c10::Argument& argument = schema.arguments()[i];
    if (value.isTensor()) look(value.toTensor(), argument);
    else if (value.isTensorList())
      for (const Tensor& t : value.toTensorVector()) look(t, argument);
    else if (value.isOptionalTensorList())
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        if (t) look(*t, argument);
  }
}

// Their result's shape, or its value on the host, depends on values on the device.
inline bool makes_the_host_wait(const std::string& name, c10::ArrayRef<IValue> arguments) {
  static const std::unordered_set<std::string> always = {
      "aten::_local_scalar_dense", "aten::nonzero", "aten::nonzero.out", "aten::masked_select",
      "aten::masked_select.out", "aten::_unique", "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::equal", "aten::bincount",
      "torchvision::nms"};
  if (name == "aten::repeat_interleave.Tensor") return arguments[1].isNone();  // no output_size
  if (!is_indexing(name)) return always.count(name);
  int64_t indices = 0;
  bool has_mask = false;
  for (const auto& index : arguments[1].toOptionalTensorVector()) {
    const std::optional<Tensor> t = index;
    if (!t || !t->defined()) continue;
    ++indices;
    has_mask |= t->scalar_type() == at::kBool || t->scalar_type() == at::kByte;
  }
  // A scalar assigned through one mask is masked_fill, for which nobody waits.
  const bool is_fill = indices == 1 && arguments.size() > 3 && arguments[2].isTensor() &&
      arguments[2].toTensor().numel() == 1 && arguments[2].toTensor().is_cpu() && !arguments[3].toBool();
  return has_mask && !is_fill;
}
}  // namespace second_device
