//! Work over threads. Pieces have a fixed size, so that results do not depend on how many threads there are.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::Float;

/// Elements of a piece of elementwise work: 64 KiB of f32.
const CHUNK: usize = 16 * 1024;

/// A new buffer of so many elements, filled by `f(start, piece)` over pieces that are zero.
pub(in crate::ops) fn filled<T: Float>(len: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let ([buffer], _) = filled_pieces([true], len, CHUNK, |piece, [place]| f(piece * CHUNK, place));
    buffer.unwrap_or_default()
}

/// A new buffer of zeros, zeroed by all threads.
pub(in crate::ops) fn zeros<T: Float>(len: usize) -> Vec<T> {
    filled(len, |_, _| {})
}

/// As [`filled`], by `f(first row, rows)` over pieces of whole rows.
pub(in crate::ops) fn filled_rows<T: Float>(len: usize, row_len: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let rows = piece_rows(row_len);
    let fill = |piece: usize, [place]: [&mut [T]; 1]| f(piece * rows, place);
    let ([buffer], _) = filled_pieces([true], len, rows * row_len.max(1), fill);
    buffer.unwrap_or_default()
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

/// New buffers of `len` elements where they are wanted, and the results of `f(piece, places)`, which fills pieces of `piece_len`
/// elements of each, in order. Places are zero; those of a buffer that is not wanted are empty.
///
/// Each task zeroes its places just before it fills them, in the cache of its core: buffers that are zeroed as a whole pass through
/// memory once more, on one thread.
pub(in crate::ops) fn filled_pieces<T: Float, R: Send, const N: usize>(
    wanted: [bool; N],
    len: usize,
    piece_len: usize,
    f: impl Fn(usize, [&mut [T]; N]) -> R + Sync,
) -> ([Option<Vec<T>>; N], Vec<R>) {
    let mut buffers = wanted.map(|wanted| wanted.then(|| Vec::with_capacity(len)));
    let mut places = buffers.each_mut().map(|buffer| match buffer {
        Some(buffer) => &mut buffer.spare_capacity_mut()[..len],
        None => &mut [],
    });
    let tasks = (0..len.div_ceil(piece_len)).map(|_| {
        places.each_mut().map(|place| {
            let piece = piece_len.min(place.len());
            place.split_off_mut(..piece).unwrap_or_default()
        })
    });
    let tasks: Vec<[&mut [MaybeUninit<T>]; N]> = tasks.collect();
    let run = |(piece, places): (usize, [&mut [MaybeUninit<T>]; N])| f(piece, places.map(zeroed));
    let results = if len <= CHUNK {
        tasks.into_iter().enumerate().map(run).collect()
    } else {
        tasks.into_par_iter().enumerate().map(run).collect()
    };
    for buffer in buffers.iter_mut().flatten() {
        #[expect(unsafe_code, reason = "zeroing in parallel")]
        // SAFETY: the pieces cover `len` elements, and each was zeroed before it was filled.
        unsafe {
            buffer.set_len(len);
        }
    }
    (buffers, results)
}

fn zeroed<T: Float>(piece: &mut [MaybeUninit<T>]) -> &mut [T] {
    piece.fill(MaybeUninit::new(T::zero()));
    #[expect(unsafe_code, reason = "zeroing in parallel")]
    // SAFETY: all elements were just written.
    unsafe {
        piece.assume_init_mut()
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
