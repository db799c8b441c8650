//! Vector loops: one body, compiled twice.

/// Declares a function whose body is also compiled for AVX2 and FMA and chosen at run time.
///
/// Both versions give the same bits: operations are fused only where the source says `mul_add`. Other architectures have
/// their vectors in the baseline. A closure that is not inlined, such as one that is mapped over an iterator, is compiled for the
/// baseline: bodies are loops.
macro_rules! wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$($generic:ident: $bound:path),*>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$($generic),*>($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    #[expect(unsafe_code, reason = "a function compiled for a CPU feature")]
                    // SAFETY: both features were just detected; the function has no other requirement.
                    return unsafe { avx2::<$($generic),*>($($arg),*) };
                }
            }
            body::<$($generic),*>($($arg),*)
        }
    };
}

pub(crate) use wide;
