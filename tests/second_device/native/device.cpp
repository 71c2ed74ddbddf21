// A CUDA device without a GPU; ../README.md says what it shows. One boxed function replaces every
// kernel under PyTorch's CUDA dispatch key: it checks devices, reports what a host would wait for,
// and runs the CPU's kernel on the same memory.
#include <ATen/native/Resize.h>
#include <ATen/ops/set_native.h>
#include <torch/extension.h>

#include <algorithm>
#include <memory>
#include <new>

#include "aliases.h"
#include "rules.h"
#include "services.h"

namespace second_device {
namespace {
using Stack = torch::jit::Stack;

std::atomic<int64_t> calls{0};
std::atomic<bool> is_bad_fork{false};

void begin() {
  ++calls;
  TORCH_CHECK(!is_bad_fork, "CUDA error: initialization error (the process was forked after it used CUDA)");
}

template <typename F>
IValue map_tensors(const IValue& value, F f) {
  if (value.isTensor()) return value.toTensor().defined() ? IValue(f(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(t.defined() ? f(t) : t);
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
      list.push_back(t && t->defined() ? std::optional<Tensor>(f(*t)) : t);
    return list;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) return IValue(c10::Device(c10::kCPU));
  return value;
}

bool is_half(const Tensor& t) { return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16; }

// Run the CPU's kernel in single precision where it has none in half precision and CUDA has one.
void call_widened(const c10::OperatorHandle& op, const Stack& before, Stack* stack) {
  std::vector<std::pair<Tensor, Tensor>> written;
  std::optional<at::ScalarType> narrow;
  stack->clear();
  for (size_t i = 0; i < before.size(); ++i) {
    const auto* info = op.schema().arguments()[i].alias_info();
    stack->push_back(map_tensors(before[i], [&](const Tensor& t) {
      if (!is_half(t)) return t;
      narrow = t.scalar_type();
      Tensor wide = t.to(at::kFloat);
      if (info && info->isWrite()) written.emplace_back(t, wide);
      return wide;
    }));
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (IValue& value : *stack)
    value = map_tensors(value, [&](const Tensor& t) {
      for (auto& [alias, wide] : written)
        if (t.is_same(wide)) {
          alias.copy_(wide);
          return alias;
        }
      return t.scalar_type() == at::kFloat && narrow ? t.to(*narrow) : t;
    });
}

// CUDA's products of half precision sum in single precision; the CPU's of float16 are slow besides.
bool sums_in_single_precision(const std::string& name, const Stack& arguments) {
  static const std::unordered_set<std::string> products = {
      "aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm",
      "aten::baddbmm"};
  return products.count(name) &&
      std::any_of(arguments.begin(), arguments.end(), [](const IValue& value) {
        return value.isTensor() && value.toTensor().defined() && is_half(value.toTensor());
      });
}

void call_cpu_kernel(const c10::OperatorHandle& op, const std::string& name, Stack* stack) {
  // CUDA's softmax under autocast takes half precision and gives single; the CPU's cannot.
  std::optional<at::ScalarType> narrow;
  if ((name == "aten::_softmax" || name == "aten::_log_softmax") && (*stack)[2].toBool()) {
    (*stack)[0] = (*stack)[0].toTensor().to(at::kFloat);
    (*stack)[2] = false;
  } else if (name == "aten::_softmax_backward_data" || name == "aten::_log_softmax_backward_data") {
    const auto dtype = (*stack)[0].toTensor().scalar_type();
    if (dtype != (*stack)[3].toScalarType()) {
      narrow = (*stack)[3].toScalarType();
      (*stack)[3] = dtype;
    }
  }
  const Stack before = *stack;
  if (sums_in_single_precision(name, before)) return call_widened(op, before, stack);
  try {
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  } catch (const c10::Error& error) {
    const std::string what = error.what();
    if (what.find("not implemented for 'Half'") == std::string::npos &&
        what.find("not implemented for 'BFloat16'") == std::string::npos)
      throw;
    call_widened(op, before, stack);
  }
  if (narrow) (*stack)[0] = (*stack)[0].toTensor().to(*narrow);
}

void kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  begin();
  const auto& schema = op.schema();
  const std::string name = c10::toString(op.operator_name());
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  const c10::ArrayRef<IValue> arguments(stack->data() + first, count);
  check_devices(name, schema, arguments);
  if (makes_the_host_wait(name, arguments)) report("wait", name);

  Aliases aliases;
  Stack host;
  for (size_t i = 0; i < count; ++i) {
    host.push_back(map_tensors(arguments[i], [&](const Tensor& t) { return t.is_cuda() ? aliases.host(t) : t; }));
    const std::string type = schema.arguments()[i].type()->str();
    if ((type == "Generator?" || type == "Generator") && host[i].isNone()) host[i] = IValue(generator());
  }
  call_cpu_kernel(op, name, &host);
  aliases.settle();
  stack->erase(stack->begin() + first, stack->end());
  for (const IValue& value : host)
    stack->push_back(map_tensors(value, [&](const Tensor& t) { return aliases.device(t); }));
}

// ---- operations that make, move or re-point memory ----------------------------------------------
const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<c10::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  begin();
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &allocator(), kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  begin();
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator(), kKeys,
      c10::dtype_or_default(dtype));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  begin();
  if (self.numel() == 0 && source.numel() == 0) return self;
  if (self.is_cuda() != source.is_cuda()) {
    const std::string what = source.is_cuda() ? "copy to the host" : "copy to the device";
    if (!non_blocking) report("wait", what);
    // The values of a non-blocking copy to the host are not there when it returns.
    else report(source.is_cuda() ? "hazard" : "copy", "non-blocking " + what);
  }
  Aliases aliases;
  Tensor to = self.is_cuda() ? aliases.host(self) : self;
  to.copy_(source.is_cuda() ? aliases.host(source) : source);
  return self;
}

Tensor& set_storage_offset(
    Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(
      self, source, offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor& set_storage(Tensor& self, at::Storage source) {
  const auto number = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_cpu_(self, source, 0, {number}, {});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return at::native::set_storage_cpu_(
      self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

bool is_pinned(const Tensor&, std::optional<c10::Device>) { return false; }
void record_stream(Tensor&, c10::Stream) {}

// ---- installation ---------------------------------------------------------------------------------
torch::Library* library_of(const std::string& name) {
  static std::vector<std::unique_ptr<torch::Library>> kept;  // kernels leave with their library
  static std::unordered_map<std::string, torch::Library*> by_name;
  auto& found = by_name[name];
  if (!found) {
    kept.push_back(std::make_unique<torch::Library>(
        torch::Library::IMPL, name, c10::DispatchKey::CUDA, __FILE__, __LINE__));
    found = kept.back().get();
  }
  return found;
}

void install(const std::vector<std::string>& operations, const std::vector<std::string>& no_check) {
  unchecked.insert(no_check.begin(), no_check.end());
  c10::SetAllocator(c10::kCUDA, &allocator(), 255);
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::kCUDA)].store(new Guard());
  // A build with CUDA has made its hooks, which ask the driver. These take their place in memory.
  auto& hooks = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  static_assert(sizeof(Hooks) == sizeof(void*));
  new (static_cast<void*>(&hooks)) Hooks();

  auto* aten = library_of("aten");
  aten->impl("empty.memory_format", &empty);
  aten->impl("empty_strided", &empty_strided);
  aten->impl("copy_", &copy_);
  aten->impl("set_.source_Storage_storage_offset", &set_storage_offset);
  aten->impl("set_.source_Storage", &set_storage);
  aten->impl("set_.source_Tensor", &set_tensor);
  aten->impl("resize_", &resize_);
  aten->impl("record_stream", &record_stream);
  aten->impl("is_pinned", &is_pinned);
  const std::unordered_set<std::string> own = {
      "aten::empty.memory_format", "aten::empty_strided", "aten::copy_",
      "aten::set_.source_Storage_storage_offset", "aten::set_.source_Storage",
      "aten::set_.source_Tensor", "aten::set_", "aten::resize_", "aten::record_stream",
      "aten::is_pinned"};
  for (const std::string& name : operations) {
    if (own.count(name)) continue;
    const auto at = name.find("::");
    library_of(name.substr(0, at))
        ->impl(name.substr(at + 2).c_str(), torch::CppFunction::makeFromBoxedFunction<&kernel>());
  }
}

void listen(pybind11::object function) {
  PyObject* old = listener;
  is_heard = !function.is_none();
  listener = function.is_none() ? nullptr : function.release().ptr();
  Py_XDECREF(old);
}
}  // namespace
}  // namespace second_device

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("install", &second_device::install);
  m.def("listen", &second_device::listen);
  m.def("calls", [] { return second_device::calls.load(); });
  m.def("refuse_after_fork", [] { second_device::is_bad_fork = true; });
  m.def("generator", [] { return second_device::generator(); });
}
