// Tensors of the host on the memory of tensors of the device, for the duration of one operation.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <unordered_map>
#include <vector>

#include "services.h"

namespace second_device {
using at::Tensor;

class Aliases {
 public:
  // Return a tensor of the host with the memory of `t`, which is on the device.
  Tensor host(const Tensor& t) {
    const c10::Storage& storage = t.storage();
    auto found = host_storages_.find(storage.unsafeGetStorageImpl());
    if (found == host_storages_.end()) {
      c10::Storage shared = sharing(storage, c10::Device(c10::kCPU), c10::GetCPUAllocator());
      device_storages_.emplace(shared.unsafeGetStorageImpl(), storage);
      found = host_storages_.emplace(storage.unsafeGetStorageImpl(), std::move(shared)).first;
    }
    auto keys = c10::DispatchKeySet(c10::DispatchKey::CPU);
    for (auto k : {c10::DispatchKey::Conjugate, c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor})
      if (t.key_set().has(k)) keys = keys.add(k);
    Tensor alias = tensor(c10::Storage(found->second), keys, t);
    originals_.emplace(alias.unsafeGetTensorImpl(), t);
    kept_.push_back(alias);  // or a result could be given its address
    return alias;
  }

  // Return the tensor of the device for a result on the host: an argument, a view of one, or new.
  Tensor device(const Tensor& t) {
    if (!t.defined() || !t.device().is_cpu()) return t;
    const auto same = originals_.find(t.unsafeGetTensorImpl());
    if (same != originals_.end()) return same->second;
    auto* shared = t.storage().unsafeGetStorageImpl();
    for (const auto& [alias, original] : originals_)
      if (alias->storage().unsafeGetStorageImpl() == shared) {
        // Of the argument's memory, and an inference tensor where that is one.
        auto view = at::detail::make_tensor<c10::TensorImpl>(
            c10::TensorImpl::VIEW, c10::Storage(original.storage()), original.key_set(), t.dtype());
        view.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
        return view;
      }
    auto found = device_storages_.find(shared);  // of another result, or new
    if (found == device_storages_.end())
      found = device_storages_.emplace(shared, sharing(t.storage(), kDevice, &allocator())).first;
    return tensor(c10::Storage(found->second), c10::DispatchKeySet(c10::DispatchKey::CUDA), t);
  }

  // Give the tensors of the device the sizes and memory that a kernel has given their aliases.
  void settle() {
    for (auto& [alias, original] : originals_) {
      c10::Storage mine = original.storage();
      const c10::Storage& theirs = alias->storage();
      if (theirs.data() != mine.data() || theirs.nbytes() != mine.nbytes()) {
        mine.set_data_ptr(c10::DataPtr(theirs.mutable_data(), new c10::Storage(theirs), &release, kDevice));
        mine.set_nbytes(theirs.nbytes());
      }
      auto* impl = original.unsafeGetTensorImpl();
      if (impl->sizes() != alias->sizes() || impl->strides() != alias->strides())
        impl->set_sizes_and_strides(alias->sizes(), alias->strides(), alias->storage_offset());
    }
  }

 private:
  static void release(void* held) { delete static_cast<c10::Storage*>(held); }

  static c10::Storage sharing(const c10::Storage& held, c10::Device device, c10::Allocator* allocator) {
    c10::DataPtr data(held.mutable_data(), new c10::Storage(held), &release, device);
    return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), held.nbytes(), std::move(data), allocator, true));
  }

  static Tensor tensor(c10::Storage storage, c10::DispatchKeySet keys, const Tensor& like) {
    auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
    auto* impl = made.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
    return made;
  }

  std::unordered_map<c10::StorageImpl*, c10::Storage> host_storages_, device_storages_;
  std::unordered_map<c10::TensorImpl*, Tensor> originals_;  // alias -> tensor of the device
  std::vector<Tensor> kept_;
};
}  // namespace second_device
