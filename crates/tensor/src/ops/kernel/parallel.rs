//! Work over threads. Pieces have a fixed size, so that results do not depend on how many threads there are.

use std::marker::PhantomData;

use rayon::prelude::*;

/// Elements of a piece of elementwise work: 64 KiB of f32.
const CHUNK: usize = 16 * 1024;

/// Runs `f(start, piece)` over pieces of `out`.
pub(in crate::ops) fn chunked<T: Send>(out: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
    if out.len() <= CHUNK {
        f(0, out);
    } else {
        out.par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(i, piece)| f(i * CHUNK, piece));
    }
}

/// Runs `f(first row, rows)` over groups of whole rows of `out`.
pub(in crate::ops) fn chunked_rows<T: Send>(out: &mut [T], row_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.is_empty() {
        return;
    }
    let rows = piece_rows(row_len);
    if out.len() <= CHUNK {
        f(0, out);
    } else {
        out.par_chunks_mut(rows * row_len)
            .enumerate()
            .for_each(|(i, piece)| f(i * rows, piece));
    }
}

/// Rows of a piece of work, at least one.
pub(in crate::ops) fn piece_rows(row_len: usize) -> usize {
    (CHUNK / row_len.max(1)).max(1)
}

/// A buffer that several threads write, each to elements of its own.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "disjoint parts of one buffer on several threads")]
// SAFETY: it stands for an exclusive borrow of a slice of `T: Send`; `part` makes the caller promise disjoint elements.
unsafe impl<T: Send> Send for Shared<'_, T> {}
#[expect(unsafe_code, reason = "disjoint parts of one buffer on several threads")]
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(in crate::ops) fn new(buffer: &'a mut [T]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            len: buffer.len(),
            buffer: PhantomData,
        }
    }

    /// Elements `start .. start + len` as a slice.
    ///
    /// # Safety
    /// While the slice lives, no other thread or slice uses these elements.
    #[expect(unsafe_code, reason = "disjoint parts of one buffer on several threads")]
    pub(in crate::ops) unsafe fn part(self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start + len <= self.len, "part of a shared buffer out of range");
        // SAFETY: in range by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Address of element `start`, with the number of elements from there on.
    pub(in crate::ops) fn from(self, start: usize) -> (*mut T, usize) {
        assert!(start <= self.len, "start in a shared buffer out of range");
        (self.start.wrapping_add(start), self.len - start)
    }
}
